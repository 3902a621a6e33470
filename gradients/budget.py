"""The cheapest exact schedule whose peak fits a number of bytes, foreseen from updates that are traced beforehand.

A trace runs the updates of one cycle with their graphs and vector-Jacobian products and follows their live storages.
"""

import re
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import torch

from loopgrad.gradients import host_memory
from loopgrad.gradients.checks import is_int
from loopgrad.gradients.contract import Stats, period_of
from loopgrad.gradients.fingerprint import marks_of
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import alias, leaf_view, next_number, refuse_older, requires_grad, search
from loopgrad.gradients.live_bytes import PeakBytes, storages
from loopgrad.gradients.observed import seeing_all
from loopgrad.gradients.outputs import Saving, Taken
from loopgrad.gradients.recompute import Conditions
from loopgrad.gradients.rows_going import tried
from loopgrad.gradients.schedule import Schedule, binomial, evaluations
from loopgrad.gradients.stored_states import StoredStates, apart, fetched

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)}
_UNITS |= {f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)}


def parse_bytes(budget: int | str, owner: str = "CheckpointedBPTT(memory_budget={!r})") -> int:
    """Return the bytes of a budget such as "512MiB", "2GB", "300 kB" or a plain int.

    Args:
        budget: As said.
        owner: How messages name it.

    Raises:
        ValueError: It is not a positive number of bytes.
    """
    given = budget
    if isinstance(budget, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", budget)
        if found and found[2].lower() in _UNITS:
            budget = int(float(found[1]) * _UNITS[found[2].lower()])
    if not is_int(budget, 1):
        raise ValueError(
            f"{owner.format(given)} must be a positive number of bytes: an int, or a string such "
            'as "512MiB", "1.5GiB", "2GB" or "300 kB"'
        )
    return budget


class BudgetTooSmall(ValueError):
    """No schedule fits the budget; the message gives the smallest budget that one fits."""


@dataclass(frozen=True)
class Footprint:
    """What one update of a cell holds, in bytes; the largest of the updates traced.

    Attributes:
        state: Storages of one state.
        snapshot: What one stored state takes of the device, with the generator states and buffers kept beside it, and
            the marks by which it is met again.
        graph: What the graph of one update holds, its output included.
        taped: Peak of an update with its vector-Jacobian product, sums of gradients and cotangents included.
        sums: The running sums of the gradients of parameters and inputs.
        fixed: What lives beside: the last state and its cotangent, copies of buffers and generator states.
        meeting: What blocks that are run again take beside the rest, to meet the conditions and the states that were.
        traced: Updates traced.
    """

    state: int
    snapshot: int
    graph: int
    taped: int
    sums: int
    fixed: int
    meeting: int
    traced: int

    def whole(self, num_steps: int) -> int:
        """Return the peak of plain backpropagation through time."""
        return self.fixed + self.taped + (num_steps - 1) * self.graph

    def cut(self, snapshots: int, length: int) -> int:
        """Return the peak of blocks of `length` updates with that many stored states."""
        # in a longer block the sums of this block and those of the blocks after it live beside most of its graphs
        longer = (length - 1) * self.graph + (self.sums if length > 1 else 0)
        return self.fixed + self.meeting + self.state + snapshots * self.snapshot + self.taped + longer


def choose(
    footprint: Footprint, num_steps: int, budget: int, owner: str = "CheckpointedBPTT(memory_budget={!r})"
) -> Schedule | None:
    """Return the schedule of fewest evaluations that fits, ties by smallest peak; None for plain BPTT.

    Raises:
        BudgetTooSmall: None fits; the message names the budget as `owner` does.
    """
    if footprint.whole(num_steps) <= budget:
        return None
    best = None
    for length in range(1, num_steps + 1):
        room = budget - footprint.cut(0, length)
        if room < 0:
            break
        blocks = -(-num_steps // length)
        # the state before the last block is the working state, which `cut` counts already
        most = max(blocks - 2, 0)
        snapshots = min(room // footprint.snapshot, most) if footprint.snapshot else most
        found = evaluations(num_steps, snapshots, length), footprint.cut(snapshots, length), snapshots, length
        best = min(best, found) if best else found
    if best is None:
        least = min(footprint.whole(num_steps), footprint.cut(0, 1))
        raise BudgetTooSmall(
            f"{owner.format(budget)} is too small: {num_steps} updates of this cell on this batch "
            f'need at least memory_budget="{-(-least // 1024)}KiB"; give that, or a smaller batch'
        )
    count, _, most, length = best  # fewer evaluations with more snapshots: the fewest that do as well
    snapshots = bisect_left(range(most), -count, key=lambda fewer: -evaluations(num_steps, fewer, length))
    return binomial(num_steps, snapshots, length)


def trace(
    cell: FunctionalCell, num_steps: int, states: StoredStates, stats: Stats, saving: Saving | None = None
) -> Footprint:
    """Run the updates of one cycle with graph and vector-Jacobian product, and leave everything else as it was.

    Where a readout is asked on the way, it is here asked after each of them.
    """
    conditions = Conditions(cell.cell, [*cell.state, *cell.others])
    found = seeing_all(cell, conditions, lambda: _trace(cell, num_steps, states, conditions, saving), stats, num_steps)
    stats.cell_evaluations += found.traced
    stats.vjps += found.traced
    return found


def _trace(
    cell: FunctionalCell, num_steps: int, states: StoredStates, conditions: Conditions, saving: Saving | None
) -> Footprint:
    traced = min(period_of(cell.cell), num_steps)
    state, measured, answer = list(cell.state), [], 0
    try:
        with tried(), conditions.restored(cell.cell) as buffers:
            versions = [buffer._version for buffer in buffers.values()]
            for step in range(traced):
                before, (state, answer, sizes) = _size(state), _one_update(cell, state, buffers, step, saving)
                if _size(state) > before:
                    raise ValueError(
                        f"CheckpointedBPTT(memory_budget=...) cannot foresee a state that grows: update {step} took it "
                        f"from {before} to {_size(state)} bytes. Choose the segments yourself, schedule=k or "
                        "'binomial', or give the state its full size from the start"
                    )
                measured.append(sizes)
            moved = not all(map(torch.equal, conditions.generators, conditions.generator_states()))
            written = versions != [buffer._version for buffer in buffers.values()]
    finally:
        # casts of the aliases that the trace read would otherwise stay in the cache of the caller's autocast region
        torch.clear_autocast_cache()
    graph, taped = (max(column) for column in zip(*measured, strict=True))
    generators, copies = _bytes(conditions.generators), _bytes(list(buffers.values()))
    short, storing = _stored(state, states)
    sums = sum(t.numel() * t.element_size() for t in cell.others if t.requires_grad)
    mark, held, comparing = marks_of(state)
    # beside a state: its marks and the buffers, as forward notes them and as the way back notes them again; states in a
    # short form are met again at the first block alone
    noted = 2 * (mark * (states.form is None) + copies * written)
    kept = [leaf for leaf in short if not states.offload or host_memory.stays(leaf)]
    return Footprint(
        state=_bytes(state),
        snapshot=_bytes(kept) + generators * moved + noted,
        graph=graph,
        taped=max(taped, storing),
        sums=sums,
        # what is kept of answers, and its gradient
        fixed=2 * _bytes(state) + 2 * copies + 2 * generators + 2 * answer * (saving.rows if saving else 0),
        # the same of the two states that are there beside the stored ones, and states being compared, which is before
        # the product through the graph is taken
        meeting=4 * (mark + copies * written)
        + held
        + max(0, graph + sums + _bytes(state) + comparing - max(taped, storing)),
        traced=traced,
    )


def _one_update(
    cell: FunctionalCell, state: list[Any], buffers: dict[str, torch.Tensor], step: int, saving: Saving | None
) -> Any:
    sources = [alias(leaf, True) for leaf in state]
    others, since = cell.stand_ins([t.requires_grad for t in cell.others]), next_number()
    with PeakBytes() as live:
        entries = cell.leaf_views(others)
        taken = Taken(Saving.every(step + 1)) if saving is not None else None
        last = cell.run_on([leaf_view(t) for t in sources], entries, buffers, step, step + 1, answers=taken)
        answers = taken.tensors if taken is not None else []
        refuse_older(search(last, since))
        resumed = [leaf_view(t) for t in entries if t.requires_grad]
        graph = live.live
        pairs = [(out, torch.zeros_like(out)) for out in (*last, *resumed, *answers) if requires_grad(out)]
        asked = [t for t in (*sources, *others) if requires_grad(t)]
        new = [alias(leaf, False) for leaf in last]
        answer = _size(answers)
        del last, resumed, entries, taken, answers
        outputs, seeds = zip(*pairs, strict=True) if pairs else ((), ())
        if pairs:
            torch.autograd.grad(outputs, asked, seeds, allow_unused=True)
    return new, answer, (graph, live.peak)


def _stored(state: list[Any], states: StoredStates) -> tuple[list[torch.Tensor], int]:
    """Return what a stored state consists of, and the peak of storing and of fetching it."""
    devices = [leaf.device if isinstance(leaf, torch.Tensor) else None for leaf in state]
    with PeakBytes() as live:
        stored = states.store(state)
        states.end()
        fetched(stored, devices)
    return apart(stored)[0], live.peak


def _size(leaves: list[Any]) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, torch.Tensor))


def _bytes(leaves: list[Any]) -> int:
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    found = {storage._cdata: storage.nbytes() for tensor in tensors for storage in storages(tensor)}
    return sum(found.values())
