"""What a long recursion takes, from traces of short ones: each estimator grows with the updates as it claims to."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from loopgrad.analysis.foreseen import Growing
from loopgrad.gradients import CheckpointedBPTT, Estimator

MOST_BATCH = 2**40


@dataclass(frozen=True)
class Traced:
    """What a step takes under an estimator, at any batch.

    Attributes:
        parts: Weighted peaks, whose sum is the peak.
        evaluations: Calls of the cell.
        vjps: Vector-Jacobian products of single updates.
    """

    parts: tuple[tuple[float, Growing], ...]
    evaluations: int
    vjps: int

    def at(self, batch: int) -> int:
        """Return the peak in bytes."""
        return round(sum(weight * growing.at(batch) for weight, growing in self.parts))


Trace = Callable[[Estimator, int], Traced]


def of_length(trace: Trace, estimator: Estimator, num_steps: int, period: int, most: int) -> Traced:
    """Return trace(estimator, num_steps), from recursions of at most some `most` updates where that is longer.

    Linear in the number of updates, once twice as many of them have no more vjps for O(k): what an estimator keeps no
    part of, gradients of inputs of single updates grow all the same. With checkpoints linear in the number of segments
    and in that of updates in one. Calls of the cell are linear in all of them.
    """
    if num_steps <= max(most, 3 * period):
        return trace(estimator, num_steps)
    unit = max(2, period, most // 4 // period * period)
    if isinstance(estimator, CheckpointedBPTT) and estimator.num_snapshots is None:
        return _of_segments(trace, estimator, num_steps, max(period, unit // 2 // period * period))
    if estimator.memory not in ("O(T)", "O(k)", "O(1)"):
        return trace(estimator, num_steps)
    short, length = trace(estimator, 2 * unit), 4 * unit
    while length < num_steps:
        long = trace(estimator, length)
        if estimator.memory != "O(k)" or short.vjps == long.vjps:  # else its window is not yet full
            first = length // 2
            share = (num_steps - first) / (length - first)
            return _mixed([(1 - share, short), (share, long)], (short, first), (long, length), num_steps)
        short, length = long, 2 * length
    return trace(estimator, num_steps)


def _of_segments(trace: Trace, estimator: CheckpointedBPTT, num_steps: int, unit: int) -> Traced:
    length = math.isqrt(num_steps - 1) + 1 if estimator.schedule == "sqrt" else min(int(estimator.schedule), num_steps)
    segments = -(-num_steps // length)
    # beside short forms one state is restored, but of two segments at the peak none
    few = 2 if estimator.kept is None or segments < 3 else 3
    first, another, longer = (
        trace(replace(estimator, schedule=each), count * each)
        for count, each in ((few, unit), (few + 1, unit), (few, 2 * unit))
    )
    more, updates = segments - few, (length - unit) / unit
    parts = [(1 - more - updates, first), (more, another), (updates, longer)]
    return _mixed(parts, (first, few * unit), (another, (few + 1) * unit), num_steps)


def _mixed(
    parts: list[tuple[float, Traced]], short: tuple[Traced, int], long: tuple[Traced, int], num_steps: int
) -> Traced:
    """Return a sum of peaks, and the counts on the line through two recursions."""

    def on_line(one: int, other: int) -> int:
        return round(one + (other - one) * (num_steps - short[1]) / (long[1] - short[1]))

    evaluations = on_line(short[0].evaluations, long[0].evaluations)
    weighted = tuple((weight * own, growing) for weight, it in parts if weight for own, growing in it.parts)
    return Traced(weighted, evaluations, on_line(short[0].vjps, long[0].vjps))


def largest(fits: Callable[[int], bool]) -> int:
    """Return the largest batch that fits, 0 if none does."""
    low, high = 0, 1
    while high < MOST_BATCH and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
