"""Writing a file whole or not at all, also when the power fails."""

import errno
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

# what a killed process leaves of a file that it was writing: the name, and the number of the process
_PART = re.compile(r"\.(.+)\.\d+(\.part)?")


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, its folder too where there is none: a crash leaves the old file or the new one."""
    replace_all({path: content})


def replace_all(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together: none takes its place before all are written."""
    written = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in contents}
    for path in written:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    try:
        for path, temporary in written.items():
            make_folder(path.parent)
            try:
                temporary.unlink(missing_ok=True)
                with open(temporary, "xb") as file:  # through no link that lies there
                    file.write(contents[path])
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                error.filename = str(path)  # a full disk does not say of what, and nobody knows the name of the part
                raise
        for path, temporary in written.items():
            os.replace(temporary, path)
        for folder in {path.parent for path in written}:
            sync_folder(folder)  # or names may be lost with the power, after others that were written later
    finally:
        for temporary in written.values():
            with suppress(OSError):  # a folder that is gone has taken it along
                temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it, each of them durable in the one that it is in; return those that are new."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in reversed(missing):
        sync_folder(place.parent)
    return missing[::-1]


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can."""
    with suppress(OSError, AttributeError):  # Windows opens no folder
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def whole_name(name: str) -> str | None:
    """Return the name of the file that a killed process was writing under this name; None if it is no such name."""
    found = _PART.fullmatch(name)
    return found[1] if found else None
