"""Bytes and FLOPs of a step before it is run anywhere: counted operator by operator on tensors without data."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch._subclasses import FakeTensorMode

from loopgrad.analysis.counters import PeakBytes, flop_counter

Made = TypeVar("Made")


class Foreseen(NamedTuple):
    """What a step takes.

    Attributes:
        bytes: Most that are alive at once, beside what was made before.
        flops: Of matrix products, convolutions and attention, 2 per multiply-add.
    """

    bytes: int
    flops: int


def foreseen(make: Callable[[], Made], step: Callable[[Made], Any]) -> Foreseen:
    """Return what step(make()) takes.

    Exactly what operators of the CPU allocate, under autocast and with the kernel of attention of a real run; nothing
    is computed, whatever the size. Blind to the scratch of an accelerator's kernels and to its allocator's rounding.

    Args:
        make: Makes modules and tensors on the CPU.
        step: Runs on them; its control flow must not depend on their values.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):  # what it makes stays without data outside of it
        made = make()
    with flop_counter() as flops, PeakBytes() as peak:
        step(made)
    return Foreseen(peak.peak, int(flops.get_total_flops()))
