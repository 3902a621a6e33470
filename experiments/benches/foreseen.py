"""Bytes and FLOPs of a step before it is run anywhere: counted operator by operator on tensors without data."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch._subclasses import FakeTensorMode

from loopgrad.analysis.counters import PeakBytes, flop_counter

Made = TypeVar("Made")


def foreseen_bytes(make: Callable[[], Made], step: Callable[[Made], Any]) -> int:
    """Return the most bytes that are alive at once in step(make()), beside what `make` gives.

    Exactly what operators of the CPU allocate, under autocast and with the kernel of attention of a real run; nothing
    is computed, whatever the size. Blind to the scratch of an accelerator's kernels and to its allocator's rounding.

    Args:
        make: Makes modules and tensors on the CPU.
        step: Runs on them; its control flow must not depend on their values.
    """
    made = _without_data(make)
    with PeakBytes() as peak:
        step(made)
    return peak.peak


def foreseen_flops(make: Callable[[], Made], step: Callable[[Made], Any]) -> int:
    """Return the FLOPs of matrix products, convolutions and attention in step(make())."""
    made = _without_data(make)
    with flop_counter() as flops:
        step(made)
    return int(flops.get_total_flops())


def _without_data(make: Callable[[], Made]) -> Made:
    with FakeTensorMode(allow_non_fake_inputs=True):  # what it makes stays without data outside of it
        return make()
