"""Stopping between two steps: Ctrl-C, or the signal a cluster sends before it takes the machine away."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Stop:
    """Whether the user, or the cluster, has asked to stop."""

    requested: bool = False


@contextmanager
def on_signal() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a request, so that a step is never cut in half; a second one interrupts."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: object) -> None:
        stop.requested = True
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
