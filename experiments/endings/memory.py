"""Want of memory: how it is recognised and told, and how a command that could not even tell of it does not begin."""

import errno
import mmap
import re
import sys
from contextlib import suppress

from loopgrad.experiments.errors import NoRoom

# compiled here: where memory is lacking there is none to compile them
WORDS = r"can't allocate memory|out of memory|bad_alloc|cannot allocate|failed to map segment|codec configuration error"
NO_MEMORY = re.compile(WORDS, re.I)  # the last one of Pillow's, whose deflate found none
UNSAID = re.compile("without (exception set|setting an exception)")
BYTES_ASKED = re.compile(r"tried to allocate (\d+) bytes")
SIZE_ASKED = re.compile(r"(?:tried to allocate|Unable to allocate) ([\d.]+ [KMGT]iB)", re.I)
ROOM, ROOM_TO_LOAD = 200, 832
"""MiB of address space that the smallest run takes, without and with the 600 for which PyTorch is loaded on a CPU."""


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error says that there is no memory left."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if isinstance(error, SystemError):  # what C code that could not make the MemoryError itself comes to
        return bool(UNSAID.search(str(error)))
    unnumbered = isinstance(error, OSError) and error.errno is None
    return (unnumbered or isinstance(error, RuntimeError | ImportError)) and bool(NO_MEMORY.search(str(error)))


def amount_asked(text: str) -> str:
    """Return how much was asked for, as torch or numpy tells it."""
    if count := BYTES_ASKED.search(text):  # below a MiB it was not what was asked for that filled the memory
        asked = int(count[1]) / 2**20
        return f"{asked:,.0f} MiB were asked for; " if asked >= 1 else ""
    told = SIZE_ASKED.search(text)
    return f"{told[1]} were asked for; " if told else ""


def check_room(loads: bool) -> None:
    """Refuse to begin where the interpreter itself would die: it aborts where there is no memory for small objects.

    And scipy's BLAS never ends its loading there. What a command lacks later it lacks for something large, a tensor or
    a thread, and that can be told.

    Args:
        loads: Whether PyTorch is needed, so that there must be room for it if it is not loaded.

    Raises:
        NoRoom: Less address space is left than that.
    """
    loaded = "torch" in sys.modules
    needed = ROOM_TO_LOAD if loads and not loaded else ROOM
    try:
        mmap.mmap(-1, needed * 2**20).close()  # asked for, never touched: it costs no memory
    except (OSError, MemoryError):
        raise NoRoom(
            f"out of memory: a command needs {needed} MiB {'beside what is loaded' if loaded else 'to begin with'}, "
            "and there is less: end other programs, or raise the limit that is set (ulimit -v, --mem of a job)"
        ) from None


def reserve() -> list[bytes]:
    """Return a MiB in pieces that the allocator gives out anew, to be let go where telling of an error needs it."""
    with suppress(MemoryError):
        return [bytes(2**16) for _ in range(16)]
    return []
