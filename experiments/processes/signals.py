"""Turning a signal that would end a command into a request to stop."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from loopgrad.experiments.endings import SIGNALS, number_among_several
from loopgrad.experiments.errors import Interrupted, Signalled


@dataclass
class Stop:
    """Whether the user, or the cluster, has asked to stop."""

    requested: bool = False
    signal: int = signal.SIGINT


TOGETHER = 3.0
"""Seconds within which a signal that comes again is the same: torchrun hands on what a cluster sends to all."""


@contextmanager
def on_signal() -> Iterator[Stop]:
    """Turn the first signal that ends commands into a request, so that no step is cut in half; a second one interrupts.

    Signals that are ignored, as under nohup, stay so. Under torchrun the second one is that which comes seconds later.
    """
    stop = Stop()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    once, asked = number_among_several() is None, 0.0

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if stop.requested and time.monotonic() - asked > TOGETHER:
            raise Signalled(number)
        if stop.requested:
            return
        stop.requested, stop.signal, asked = True, number, time.monotonic()
        if not once:
            return
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    except Interrupted as error:
        error.signal = stop.signal
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
