"""Opening a file that somebody else wrote: a regular one, of no more bytes than is said, and without waiting for it."""

import io
import os
import stat
from pathlib import Path

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def open_regular(path: str | Path, most_bytes: int) -> io.BufferedReader:
    """Open a file for reading; a link is followed, and what it leads to must be such a file.

    Args:
        path: The file.
        most_bytes: A longer file is refused.

    Raises:
        ValueError: It cannot be opened, is no regular file, or too long; the message begins with its path.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(
                f"{path}: cannot be read: {_KINDS.get(stat.S_IFMT(found.st_mode), 'a device')}, not a file"
            )
        if found.st_size > most_bytes:
            raise ValueError(f"{path}: {found.st_size} bytes long, and at most {most_bytes} are read")
        return open(path, "rb", opener=_without_waiting)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # should it have become a pipe since it was looked at
