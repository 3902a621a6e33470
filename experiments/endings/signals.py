"""The signals that end a command: how they are handled before it begins, while it runs, and once it ends."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from loopgrad.experiments.errors import Signalled

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def ignore_signals() -> None:
    """Ignore the signals that end a command: it is ending, and they have nothing left to stop."""
    for number in SIGNALS:
        with suppress(ValueError):  # not in the main thread
            signal.signal(number, signal.SIG_IGN)


def leave(number: int, frame: object) -> NoReturn:
    """Handle a signal before anything has begun: end at once, for an exception may be lost in a half-made import."""
    with suppress(OSError):
        os.write(2, b"loopgrad: interrupted\n")
    os._exit(128 + number)


def cut_off(number: int, frame: object) -> NoReturn:
    """Handle a signal while a command runs: what is under way is undone as for any exception."""
    raise Signalled(number)


@contextmanager
def on_signals(handler: Callable[[int, Any], NoReturn]) -> Iterator[None]:
    """Handle the signals that end a command; those that are ignored, as under nohup, stay so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: found for number, found in before.items() if found not in (signal.SIG_IGN, None)}
    unraisable = sys.unraisablehook

    def again(lost: Any) -> None:
        if isinstance(lost.exc_value, Signalled):  # it came in a finaliser, which no exception leaves
            threading.Timer(0.01, signal.raise_signal, lost.exc_value.args).start()
        else:
            unraisable(lost)

    sys.unraisablehook = again
    for number in before:
        signal.signal(number, handler)
    if number_among_several() is not None and hasattr(
        signal, "pthread_sigmask"
    ):  # held back until it is known how to agree on who tells of them
        signal.pthread_sigmask(signal.SIG_BLOCK if handler is leave else signal.SIG_UNBLOCK, before)
    try:
        yield
    finally:
        sys.unraisablehook = unraisable
        for number, found in before.items():
            if signal.getsignal(number) is handler:  # else the command has ended
                signal.signal(number, found)


def number_among_several() -> int | None:
    """Return the rank of this process where torchrun has started several; None where it is alone."""
    size, rank = os.environ.get("WORLD_SIZE", ""), os.environ.get("RANK", "")
    return int(rank) if size.isdigit() and rank.isdigit() and int(size) > 1 else None
