"""A lock that the system lets go of with the process that holds it, however that ends, and that leaves no file."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None


class InUse(Exception):
    """Another process holds the lock; says which."""


@contextmanager
def locked(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock, the file `path`, in the block.

    Args:
        path: Made for the time of the block; its folder exists.
        patience: Seconds to wait for another process that holds it.

    Raises:
        InUse: Another process holds it.
        OSError: The file cannot be made.
    """
    if fcntl is None:
        yield
        return
    number = _taken(path, time.monotonic() + patience)
    try:
        os.ftruncate(number, 0)
        os.pwrite(number, f"process {os.getpid()} on {platform.node()}".encode(), 0)
        yield
    finally:
        with suppress(OSError):  # before the lock is open, for who opens the file later must not find it
            os.unlink(path)
        os.close(number)


def _taken(path: Path, end: float) -> int:
    """Return the descriptor of the file, locked."""
    assert fcntl is not None
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(number)
            with suppress(FileNotFoundError):
                if os.path.samestat(found, os.stat(path)):  # else its holder has removed it in between
                    return number
        except BlockingIOError:
            holder = os.pread(number, 200, 0).decode(errors="replace")
            if time.monotonic() >= end:
                raise InUse(holder or "another process") from None
            time.sleep(0.05)
        except BaseException:
            os.close(number)
            raise
        os.close(number)
