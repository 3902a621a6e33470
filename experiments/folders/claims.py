"""The folder of a command's results: held by one process at a time, claimed by one configuration."""

import errno
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from loopgrad.analysis.files import make_folder, whole_name
from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.folders.contents import check_inside, remove_if_empty, remove_parts, remove_results
from loopgrad.experiments.folders.locks import InUse, NoLock, locked

TRAINING = frozenset({"task", "model", "estimator", "trainer"})
ANALYSIS = frozenset({"checkpoint", "analysis", "estimator"})
LOCK = ".loopgrad.lock"
PASSING = ("output_dir", "restart", "workers", "logger", "tensorboard")  # keys that change no result
NOT_FOR_US = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP)


def output_folder(output_dir: Any, name: str = "output_dir") -> Path:
    """Return the folder that `output_dir=`, or another key, names.

    Raises:
        ConfigError: It names none.
    """
    if isinstance(output_dir, bool) or not isinstance(output_dir, str | int) or not str(output_dir).strip():
        kind = "a folder" if name == "output_dir" else "a file"
        raise ConfigError(f"{name}={output_dir}: must be the path of {kind}, such as ./{output_dir or 'results'}")
    if not str(output_dir).isprintable():
        raise ConfigError(f"{name}={output_dir}: holds characters that cannot be printed")
    folder = Path(str(output_dir))
    try:
        folder.exists()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise ConfigError(f"{name}={str(folder)[:80]}: {error.strerror}") from error
    return folder


@contextmanager
def claimed(
    folder: Path, configuration: dict[str, Any], restart: Any, kind: frozenset[str] = TRAINING, reported: bool = True
) -> Iterator[bool]:
    """Hold a folder as the place of this configuration's results; yields whether they are complete already.

    Args:
        folder: The place.
        configuration: All of it, as plain values.
        restart: Whether earlier results of this kind of command are removed.
        kind: Keys by which the configuration of such a command is known.
        reported: Whether a report is written even where results are complete; else such a folder may be one that
            cannot be written to.

    Raises:
        ConfigError: Another process holds it, or it holds results of another configuration, or something that is not a
            result, or it cannot be written to.
    """
    if not isinstance(restart, bool):
        raise ConfigError(f"restart={restart}: must be true or false")
    described = {key: value for key, value in configuration.items() if key not in PASSING}
    known = _checked(folder, described, restart, kind)  # before anything is written, and once more when it is held
    whole = known is not None and not restart and (folder / "records.jsonl").exists()
    if whole and not reported and not _takes_files(folder):
        yield True
        return
    with held(folder):
        known = _checked(folder, described, restart, kind)
        check_inside(folder, described)
        remove_parts(folder, known or {})
        if restart and known is not None:
            remove_results(folder, known)
            known = None  # and what is stored is replaced: a folder with results always tells whose they are
        if known is None:
            records.write(folder / "config.json", [described])
        yield known is not None and (folder / "records.jsonl").exists()


def complete(folder: Path, found: Iterable[Mapping[str, Any]]) -> None:
    """Write the records that make a claimed folder complete.

    Raises:
        FileNotFoundError: Somebody has removed the folder meanwhile; nothing is made in its place.
    """
    if not (folder / "config.json").exists():
        raise FileNotFoundError(errno.ENOENT, "was removed while the command ran", str(folder))
    records.write(folder / "records.jsonl", found)


@contextmanager
def held(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder, made where there is none, for this process alone.

    The system lets go of it with the process, however that ends. A folder that was made and stays empty is removed.
    What killed processes left of files is removed.

    Args:
        folder: The place.
        patience: Seconds to wait for another process that holds it.

    Raises:
        ConfigError: Another process holds it, or it cannot be written to, or what is written would go elsewhere.
    """
    with ExitStack() as stack:
        try:
            if not _entered(stack, folder, patience):
                print(f"{folder}: this system has no locks: let no other command work there meanwhile", flush=True)
        except InUse as error:
            raise ConfigError(
                f"{folder} is in use by another loopgrad command, {error}: wait for that to end, or choose another "
                "output_dir="
            ) from None
        except NoLock:
            raise ConfigError(f"{folder / LOCK} is no lock of loopgrad's: remove it") from None
        except OSError as error:
            if error.errno not in NOT_FOR_US:
                raise
            raise ConfigError(f"output_dir={folder}: cannot be written to: {error.strerror}") from error
        check_inside(folder, {})
        remove_parts(folder, {})
        yield


def _entered(stack: ExitStack, folder: Path, patience: float) -> bool:
    """Make a folder and lock it; return whether the system has locks."""
    for _ in range(20):
        for made in make_folder(folder):
            stack.callback(remove_if_empty, made)
        with suppress(FileNotFoundError):  # a command that left it empty has removed it in between
            return stack.enter_context(locked(folder / LOCK, patience))
    return stack.enter_context(locked(folder / LOCK, patience))


def _takes_files(folder: Path) -> bool:
    """Return whether a file can be made in a folder; what modes say holds for some users, what a mount says for all."""
    try:
        with locked(folder / LOCK):
            return True
    except (InUse, NoLock):
        return True
    except OSError as error:
        return error.errno not in NOT_FOR_US


def _checked(folder: Path, described: dict[str, Any], restart: bool, kind: frozenset[str]) -> dict[str, Any] | None:
    """Return the configuration that holds a folder already, None for none.

    Raises:
        ConfigError: The folder is not for this configuration.
    """
    try:  # before the configuration is read: another process may be putting it there
        there = list(folder.iterdir()) if folder.exists() else []
    except NotADirectoryError:
        there = [folder]
    except OSError as error:
        raise ConfigError(f"output_dir={folder}: cannot be read: {error.strerror}") from error
    known = _stored_configuration(folder / "config.json", kind)
    if known is None:
        if not all(map(_is_left, there)):
            raise ConfigError(f"{folder} exists and holds no results of this command: choose another output_dir=")
    elif not restart and (changed := records.differences(known, described)):
        raise ConfigError(
            f"{folder} holds results of another configuration ({', '.join(changed[:5])}): "
            "choose another output_dir=, or restart=true to replace them"
        )
    return known


def _is_left(path: Path) -> bool:
    """Return whether a file is what a start leaves that was killed before it had claimed the folder."""
    return path.name == LOCK or whole_name(path.name) == "config.json"


def _stored_configuration(path: Path, kind: frozenset[str]) -> dict[str, Any] | None:
    """Return the configuration that `claimed` wrote, None if there is none or the file is somebody else's."""
    try:
        (found,) = records.read(path)
    except ValueError:
        return None
    return found if kind <= found.keys() else None
