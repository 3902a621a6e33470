"""Turning a signal that would end a command into a request to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from loopgrad.experiments.endings import SIGNALS
from loopgrad.experiments.errors import Interrupted


@dataclass
class Stop:
    """Whether the user, or the cluster, has asked to stop."""

    requested: bool = False
    signal: int = signal.SIGINT


@contextmanager
def on_signal() -> Iterator[Stop]:
    """Turn the first signal that ends commands into a request, so that no step is cut in half; a second one interrupts.

    Signals that are ignored, as under nohup, stay so.
    """
    stop = Stop()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def ask(number: int, frame: object) -> None:
        stop.requested, stop.signal = True, number
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
