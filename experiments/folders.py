"""The folder of a command's results: claimed by one configuration, checked when it is met again."""

import errno
import shutil
from pathlib import Path
from typing import Any

from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError

TRAINING = frozenset({"task", "model", "estimator", "trainer"})
ANALYSIS = frozenset({"checkpoint", "analysis", "estimator"})
PASSING = ("output_dir", "restart", "workers", "tensorboard")  # keys that change no result


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


def claim(folder: Path, configuration: dict[str, Any], restart: Any, kind: frozenset[str] = TRAINING) -> bool:
    """Make `folder` the place of this configuration's results; return whether they are complete already.

    Args:
        folder: The place.
        configuration: All of it, as plain values.
        restart: Whether earlier results of this kind of command are removed.
        kind: Keys by which the configuration of such a command is known.

    Raises:
        ConfigError: It holds results of another configuration, or something that is not a result.
    """
    if not isinstance(restart, bool):
        raise ConfigError(f"restart={restart}: must be true or false")
    stored = folder / "config.json"
    known = _stored_configuration(stored, kind)
    described = {key: value for key, value in configuration.items() if key not in PASSING}
    if restart and known is not None:
        for name in ("runs", "weights", "records.jsonl", "report.md", "config.json"):
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        known = None
    elif known is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and holds no results of this command: choose another output_dir=")
    if known is not None:
        changed = records.differences(known, described)
        if changed:
            raise ConfigError(
                f"{folder} holds results of another configuration ({', '.join(changed[:5])}): "
                "choose another output_dir=, or restart=true to replace them"
            )
        return (folder / "records.jsonl").exists()
    try:
        records.write(stored, [described])
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO):  # the folder is none the worse
            raise
        raise ConfigError(f"output_dir={folder}: cannot write {stored}: {error.strerror}") from error
    return False


def _stored_configuration(path: Path, kind: frozenset[str]) -> dict[str, Any] | None:
    """Return the configuration that `claim` wrote, None if there is none or the file is somebody else's."""
    try:
        (found,) = records.read(path)
    except ValueError:
        return None
    return found if kind <= found.keys() else None
