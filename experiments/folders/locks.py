"""A lock that the system lets go of with the process that holds it, however that ends, and that leaves no file."""

import errno
import os
import platform
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None

HOLDER = b"process "  # what the file of a lock begins with, where it is not empty
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # of some file systems that machines share


class InUse(Exception):
    """Another process holds the lock; says which."""


class NoLock(Exception):
    """What lies where the file should be is none of ours."""


@contextmanager
def locked(path: Path, patience: float = 0.0) -> Iterator[bool]:
    """Hold a lock, the file `path`, in the block; yields False where the system has no locks and nothing is held.

    Args:
        path: Made for the time of the block; its folder exists.
        patience: Seconds to wait for another process that holds it.

    Raises:
        InUse: Another process holds it.
        NoLock: There is something else of this name.
        OSError: The file cannot be made.
    """
    if fcntl is None:
        yield False
        return
    number, locks = _taken(path, time.monotonic() + patience)
    try:
        with suppress(OSError):  # a full disk takes no words, and the lock is held without them
            os.ftruncate(number, 0)
            os.pwrite(number, HOLDER + f"{os.getpid()} on {platform.node()}".encode(), 0)
        yield locks
    finally:
        with suppress(OSError):  # before the lock is open, for who opens the file later must not find it
            os.unlink(path)
        os.close(number)


def _taken(path: Path, end: float) -> tuple[int, bool]:
    """Return the descriptor of the file, and whether it is locked."""
    assert fcntl is not None
    while True:
        number = _opened(path)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(number), os.stat(path)):  # else its holder has removed it in between
                    return number, True
        except BlockingIOError:
            holder = os.pread(number, 200, 0).decode(errors="replace")
            if time.monotonic() >= end:
                os.close(number)
                raise InUse(holder or "another process") from None
            time.sleep(0.05)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return number, False
            os.close(number)
            raise
        os.close(number)


def _opened(path: Path) -> int:
    """Return a descriptor of the file, made where there is none.

    What it holds will be replaced, so it must not be another's: no link to elsewhere, nothing but what `locked` writes.
    """
    try:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):  # a link, a folder, a socket
            raise NoLock from None
        raise
    found = os.fstat(number)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:  # a hard link is another's file as well
        if os.pread(number, len(HOLDER), 0).strip(b"\0") in (b"", HOLDER):  # zeros are what a loss of power makes of it
            return number
    os.close(number)
    raise NoLock
