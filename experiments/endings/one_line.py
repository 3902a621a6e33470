"""How a command ends: whatever ends it becomes one line on standard error and an exit code by kind.

1: the computation failed. 2: it was asked for wrongly. 3: the system refused. 128 + n: signal n ended it. What is none
of these is a mistake in the program, or in a class of the user's, and passes through.
"""

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NoReturn

from loopgrad.experiments.endings.memory import amount_asked, check_room, lacks_memory, reserve
from loopgrad.experiments.endings.signals import SIGNALS, ignore_signals, number_among_several
from loopgrad.experiments.endings.streams import OUTPUT
from loopgrad.experiments.errors import (
    ConfigError,
    ExaminationFailed,
    Interrupted,
    NonFinite,
    NoRoom,
    SweepUnfinished,
    WorkerLost,
)

GOES_ON = {  # what the same command does once it has been cut off
    "train": "goes on from the last checkpoint",
    "compare": "goes on from the last checkpoint",
    "analyse": "goes on with the weights left",
    "claims": "goes on from the last checkpoint",
    "bench": "goes on with the rows that are left",
}
TOLD = (ConfigError, ExaminationFailed, NoRoom, SweepUnfinished, WorkerLost)  # whose message is the whole line
LONGEST = 2_000
NO_THREAD = "can't start new thread"


@contextmanager
def in_one_line(command: str = "") -> Iterator[None]:
    """Turn what ends the block into one line and an exit code.

    Args:
        command: Name of the command that the block runs, for what the same command would do next; "" before it begins.

    Raises:
        SystemExit: The block has ended badly, and the line is printed.
    """
    held_back = reserve()
    try:
        check_room(loads=bool(command))
        try:
            yield
        finally:  # after a help that ends in SystemExit too
            if sys.stdout is not None and not sys.stdout.closed:
                sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        held_back.clear()
        code, message = _told(error, command)
        if code is None:
            raise
        ignore_signals()
        speaks, code = _turn(code, _kind(error))
        _end(code, message if speaks else "")


@contextmanager
def going_on(codes: tuple[int, ...]) -> Iterator[None]:
    """Let what follows the block run, and be ended by signals, where the block ends with one of some exit codes."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    except SystemExit as end:
        if end.code not in codes:
            raise
        for number, found in before.items():
            with suppress(ValueError):  # not in the main thread
                signal.signal(number, found)


def _turn(code: int, cause: BaseException) -> tuple[bool, int]:
    """Return whether this process is the one that says why the command ends, and the code that all end with.

    Of several processes the one that comes first to the store that all of them know. What ends all alike is left to the
    first rank if it can still say it; what ends one alone that one says at once, before the others see it gone.
    """
    rank = number_among_several()
    if rank is None:
        return True, code
    try:
        import torch.distributed as dist

        address, attempt = os.environ["MASTER_ADDR"], os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
        patience = timedelta(seconds=5)
        store = dist.TCPStore(address, int(os.environ["MASTER_PORT"]), None, False, patience, wait_for_workers=False)
        store, mine, end = dist.PrefixStore(f"loopgrad/{attempt}", store), f"{rank} {code}", time.monotonic() + 10
        alike = isinstance(cause, NonFinite | Interrupted | WorkerLost | KeyboardInterrupt) or not dist.is_initialized()
        while alike and rank and not store.check(["ended"]) and time.monotonic() < end:
            time.sleep(0.05)
        said = store.compare_set("ended", "", mine).decode()
        return said == mine, int(said.split()[1])
    except Exception:  # the store, too, may be gone, or there never was one
        return rank == 0, code


def _told(error: BaseException, command: str) -> tuple[int | None, str]:
    """Return exit code and message for what ended a command; no code for what is none of its kinds."""
    goes_on = f"; the same command {GOES_ON[command]}" if command in GOES_ON else ""
    cause = _kind(error)
    if isinstance(cause, Interrupted | KeyboardInterrupt):
        anew = "; the same command begins anew: nothing was stored" if command else ""
        return getattr(cause, "code", 128 + signal.SIGINT), f"interrupted{goes_on or anew}"
    if isinstance(cause, NonFinite):
        return cause.code, f"the loss is not finite any more: {cause}"
    if isinstance(cause, TOLD):
        return cause.code, str(cause)
    if lacks_memory(cause):
        asked = amount_asked(str(cause))
        return 1, f"out of memory: {asked}ask for smaller sizes, smaller batches or fewer workers{goes_on}"
    if NO_THREAD in str(cause):
        return 3, f"the system starts no more threads: lower num_threads or workers{goes_on}"
    if isinstance(cause, OSError):
        if cause.filename == OUTPUT and cause.errno == errno.EPIPE:  # as in `| head`: who reads has read enough
            return 128 + signal.SIGPIPE, ""
        named = f"{cause.filename}: " if cause.filename is not None else ""
        if isinstance(cause, IsADirectoryError | NotADirectoryError | FileExistsError):  # what lies there is not ours
            return 2, f"{named}{cause.strerror}: move what lies there away, or choose another place"
        return 3, f"{named}{cause.strerror or cause}{goes_on}"
    return None, ""


def _kind(error: BaseException) -> BaseException:
    """Return what an error comes from: libraries wrap those of the system, and of memory, in their own."""
    kinds = (*TOLD, NonFinite, Interrupted, KeyboardInterrupt, OSError)
    found: BaseException | None = error
    for _ in range(20):
        if found is None or isinstance(found, kinds) or lacks_memory(found):
            break
        wrapped = isinstance(found, RuntimeError | ImportError | NameError) and not found.__suppress_context__
        found = found.__cause__ or (found.__context__ if wrapped else None)
    return found or error


def _end(code: int, message: str) -> NoReturn:
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()  # before the line that comes last
    if message:
        with suppress(OSError, ValueError, AttributeError):
            print(f"loopgrad: {_inert(message)}", file=sys.stderr, flush=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # what it did not take would be tried again at shutdown
            with suppress(OSError, ValueError, AttributeError):
                stream.close()
    raise SystemExit(code) from None


def _inert(text: str) -> str:
    """Return text on one line of bearable length, with control characters shown and not obeyed."""
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
