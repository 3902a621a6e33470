"""The folder of a command's results: held by one process at a time, claimed by one configuration."""

import errno
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from loopgrad.analysis.files import make_folder, whole_name
from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.folders.locks import InUse, locked

TRAINING = frozenset({"task", "model", "estimator", "trainer"})
ANALYSIS = frozenset({"checkpoint", "analysis", "estimator"})
PASSING = ("output_dir", "restart", "workers", "tensorboard")  # keys that change no result
LOCK = ".lock"
# what commands write: in their folder, and in the folders in it
RESULTS = ("records.jsonl", "report.md", "config.json")
OF_RUNS = re.compile(r"train\.jsonl|checkpoint\.pt|weights(-\d+)?\.safetensors")
OF_BOARDS = re.compile(r"events\.out\.tfevents\..+")
OF_WEIGHTS = re.compile(r".+\.json")
FIGURE = re.compile(r"[\w.@-]+\.(png|svg|json)")
NOT_FOR_US = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


def output_folder(output_dir: Any) -> Path:
    """Return the folder that `output_dir=` names.

    Raises:
        ConfigError: It names none.
    """
    if isinstance(output_dir, bool) or not isinstance(output_dir, str | int) or not str(output_dir).strip():
        raise ConfigError(f"output_dir={output_dir}: must be the path of a folder, such as ./{output_dir or 'results'}")
    if not str(output_dir).isprintable():
        raise ConfigError(f"output_dir={output_dir}: holds characters that cannot be printed")
    folder = Path(str(output_dir))
    try:
        folder.exists()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise ConfigError(f"output_dir={str(folder)[:80]}: {error.strerror}") from error
    return folder


@contextmanager
def claimed(
    folder: Path, configuration: dict[str, Any], restart: Any, kind: frozenset[str] = TRAINING
) -> Iterator[bool]:
    """Hold a folder as the place of this configuration's results; yields whether they are complete already.

    Args:
        folder: The place.
        configuration: All of it, as plain values.
        restart: Whether earlier results of this kind of command are removed.
        kind: Keys by which the configuration of such a command is known.

    Raises:
        ConfigError: Another process holds it, or it holds results of another configuration, or something that is not a
            result, or it cannot be written to.
    """
    if not isinstance(restart, bool):
        raise ConfigError(f"restart={restart}: must be true or false")
    described = {key: value for key, value in configuration.items() if key not in PASSING}
    known = _checked(folder, described, restart, kind)  # before anything is written, and once more when it is held
    if known is not None and not restart and (folder / "records.jsonl").exists() and not _takes_files(folder):
        yield True  # nothing is left to write
        return
    with held(folder):
        known = _checked(folder, described, restart, kind)
        if restart and known is not None:
            _remove_results(folder)
            known = None  # and what is stored is replaced: a folder with results always tells whose they are
        if known is None:
            records.write(folder / "config.json", [described])
        yield known is not None and (folder / "records.jsonl").exists()


@contextmanager
def held(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder, made where there is none, for this process alone; what killed ones have left of files is removed.

    The system lets go of it with the process, however that ends. A folder that was made and stays empty is removed.

    Args:
        folder: The place.
        patience: Seconds to wait for another process that holds it.

    Raises:
        ConfigError: Another process holds it, or it cannot be written to.
    """
    with ExitStack() as stack:
        try:
            for made in make_folder(folder):
                stack.callback(_remove_if_empty, made)
            stack.enter_context(locked(folder / LOCK, patience))
        except InUse as error:
            raise ConfigError(
                f"{folder} is in use by another loopgrad command, {error}: wait for that to end, or choose another "
                "output_dir="
            ) from None
        except OSError as error:
            if error.errno not in NOT_FOR_US:
                raise
            raise ConfigError(f"output_dir={folder}: cannot be written to: {error.strerror}") from error
        for path, _ in _files(folder):
            if whole_name(path.name) is not None:
                path.unlink(missing_ok=True)
        yield


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _takes_files(folder: Path) -> bool:
    """Return whether a file can be made in a folder; what modes say holds for some users, what a mount says for all."""
    try:
        with locked(folder / LOCK):
            return True
    except InUse:
        return True
    except OSError as error:
        return error.errno not in NOT_FOR_US


def _checked(folder: Path, described: dict[str, Any], restart: bool, kind: frozenset[str]) -> dict[str, Any] | None:
    """Return the configuration that holds a folder already, None for none.

    Raises:
        ConfigError: The folder is not for this configuration.
    """
    known = _stored_configuration(folder / "config.json", kind)
    if known is None:
        try:
            foreign = folder.exists() and (not folder.is_dir() or not all(map(_is_left, folder.iterdir())))
        except OSError as error:
            raise ConfigError(f"output_dir={folder}: cannot be read: {error.strerror}") from error
        if foreign:
            raise ConfigError(f"{folder} exists and holds no results of this command: choose another output_dir=")
    elif not restart and (changed := records.differences(known, described)):
        raise ConfigError(
            f"{folder} holds results of another configuration ({', '.join(changed[:5])}): "
            "choose another output_dir=, or restart=true to replace them"
        )
    return known


def _is_left(path: Path) -> bool:
    """Return whether a file is what a start leaves that was killed before it had claimed the folder."""
    return path.name == LOCK or whole_name(path.name) in RESULTS


def _stored_configuration(path: Path, kind: frozenset[str]) -> dict[str, Any] | None:
    """Return the configuration that `claimed` wrote, None if there is none or the file is somebody else's."""
    try:
        (found,) = records.read(path)
    except ValueError:
        return None
    return found if kind <= found.keys() else None


def _remove_results(folder: Path) -> None:
    """Remove what commands have written but for the configuration; what others have put beside it stays."""
    for path, is_result in _files(folder):
        if is_result and path.name != "config.json":
            path.unlink(missing_ok=True)
    for place in ("runs/*/tensorboard", "runs/*", "runs", "weights"):
        for path in folder.glob(place):
            _remove_if_empty(path)


def _files(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the files that have names of ours, or of parts of such, and whether each is a result and no figure.

    Folders that are symbolic links lie elsewhere, and are passed over.
    """
    places = [(folder, re.compile("|".join(map(re.escape, RESULTS)))), (folder, FIGURE), (folder / "figures", FIGURE)]
    places.append((folder / "weights", OF_WEIGHTS))
    if not (folder / "runs").is_symlink():
        for run in folder.glob("runs/*"):
            if not run.is_symlink():
                places += [(run, OF_RUNS), (run / "tensorboard", OF_BOARDS)]
    for place, names in places:
        if place.is_dir() and (place == folder or not place.is_symlink()):
            for path in list(place.iterdir()):
                part = whole_name(path.name)
                if part and names in (FIGURE, OF_WEIGHTS) and not path.name.endswith(".part"):
                    continue  # such names others give as well
                if names.fullmatch(part or path.name) and (path.is_symlink() or path.is_file()):
                    yield path, names is not FIGURE
