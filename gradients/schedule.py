"""When a checkpointed backward pass stores states and runs updates again: binomial schedules over blocks of updates.

From Griewank and Walther, "Algorithm 799: Revolve" (ACM TOMS 26(1), 2000): with c stored states beside the first one
and l blocks, s = c + 1 and the smallest r with C(s + r, s) >= l, the fewest graph-free advances are
t(l, s) = r l - C(s + r, r - 1), and no block is advanced over more than r times.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """A rollout cut into blocks of updates, of which `snapshots` starts at most are stored beside z_0.

    Attributes:
        bounds: First update of each block, and the number of updates at the end.
        snapshots: Most states that are stored at any time.
        evaluations: Updates run in forward and backward together: each once, once more with its graph, and the
            re-advances between.
    """

    bounds: tuple[int, ...]
    snapshots: int
    evaluations: int

    def places(self, start: int, stop: int, free: int) -> list[int]:
        """Return the blocks whose first state a sweep from block `start` keeps, to reverse the blocks below `stop`.

        These are up to `free` stored states and, last, the working state: that of block stop - 1, which is next.
        """
        last, found = stop - 1, []
        while free and start < last:
            start += split(stop - start, free)
            found.append(start)
            free -= 1
        return found if start == last else [*found, last]


def segments(num_steps: int, length: int) -> Schedule:
    """Return the schedule that stores the start of every `length`-th update: two evaluations of each update."""
    starts = range(0, num_steps, length)
    return Schedule((*starts, num_steps), len(starts) - 1, 2 * num_steps)


def binomial(num_steps: int, snapshots: int, length: int = 1) -> Schedule:
    """Return the schedule of fewest evaluations with `snapshots` stored states over blocks of `length` updates.

    The first block takes what is left over: it is advanced over most often.
    """
    blocks = -(-num_steps // length)
    first = num_steps - (blocks - 1) * length
    bounds = (0, *range(first, num_steps + 1, length))
    return Schedule(bounds, snapshots, evaluations(num_steps, snapshots, length))


def evaluations(num_steps: int, snapshots: int, length: int = 1) -> int:
    """Return the evaluations of `binomial(num_steps, snapshots, length)`: t + 1 + T where blocks are single updates."""
    blocks = -(-num_steps // length)
    short_by = blocks * length - num_steps
    again = advances(blocks, snapshots) - (blocks - 1)
    return 2 * num_steps + again * length - short_by * max(repetitions(blocks, snapshots) - 1, 0)


def repetitions(blocks: int, snapshots: int) -> int:
    """Return the smallest r with C(s + r, s) >= blocks: how often a block is advanced over at most."""
    if snapshots == 0:
        return blocks - 1
    s, r = min(snapshots + 1, blocks), 0
    while math.comb(s + r, r) < blocks:
        r += 1
    return r


def advances(blocks: int, snapshots: int) -> int:
    """Return t(l, s), the graph-free advances that reverse `blocks` blocks when the last need not be advanced over."""
    s, r = snapshots + 1, repetitions(blocks, snapshots)
    return r * blocks - math.comb(s + r, r - 1) if r else 0


def split(blocks: int, snapshots: int) -> int:
    """Return how many of `blocks` blocks to advance before storing a state: the most that keep the advances fewest.

    The part before the new state must be reversible with r - 1 repetitions and the part after it with r and one state
    fewer; the largest such first part has its own first block advanced over r - 1 times, exactly.
    """
    s, r = snapshots + 1, repetitions(blocks, snapshots)
    return min(math.comb(s + r - 1, s), blocks - math.comb(s + r - 2, s - 1))
