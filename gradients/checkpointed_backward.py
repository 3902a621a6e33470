"""Running a recursion by a schedule of stored states, and going back through it from one stored state to the next."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loopgrad.gradients import host_memory, tree
from loopgrad.gradients.checks import check_unchanged, refuse_second_derivative, versions_of
from loopgrad.gradients.contract import check_structure
from loopgrad.gradients.functional_cell import FunctionalCell, alias, check_nothing_hidden, free_nodes, leaf_view
from loopgrad.gradients.recompute import Conditions, drop_untouched, run_without_graph
from loopgrad.gradients.schedule import Schedule


class CheckpointedRecursion(torch.autograd.Function):
    """The whole recursion as one node: (state leaves, other tensors) -> last state leaves.

    Applied to a `FunctionalCell`, its inputs, a `Schedule`, whether to offload, and the tensors.
    """

    @staticmethod
    def forward(
        ctx: Any, cell: FunctionalCell, inputs: Any, schedule: Schedule, offload: bool, *tensors: torch.Tensor
    ) -> Any:
        """Run the recursion without a graph, storing the states that the schedule names."""
        ctx.set_materialize_grads(False)
        bounds, blocks = schedule.bounds, len(schedule.bounds) - 1
        ctx.cell, ctx.schedule, ctx.places = cell, schedule, [0, *schedule.places(0, blocks, schedule.snapshots)]
        ctx.devices = [leaf.device for leaf in cell.state]
        versions = versions_of(tensors)
        snapshots, conditions, state = [], [], cell.state
        for start, stop in itertools.pairwise([*ctx.places, blocks]):
            kept = [host_memory.store(leaf) if offload and start else leaf for leaf in state]
            snapshots.append((kept, versions_of(kept)))
            conditions.append(Conditions(cell.cell, tensors, conditions[-1] if conditions else None))
            steps = range(bounds[start], bounds[stop])
            last = run_without_graph(cell.cell, cell.unflatten_state(state), inputs, steps)
            check_structure(cell.unflatten_state(state), last)
            state = tree.flatten(last)[0]
        for written, before in ((tensors, versions), *snapshots):
            check_unchanged(written, before, "its updates cannot be run again")
        drop_untouched(conditions, end=Conditions(cell.cell, tensors, conditions[-1]))
        ctx.conditions, ctx.offload = conditions, offload
        ctx.save_for_backward(*tensors, *(leaf for kept, _ in snapshots[1:] for leaf in kept))
        return tuple(state)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> Any:
        """Go back through the recursion, block by block."""
        refuse_second_derivative("CheckpointedBPTT")
        reversal, tensors = _Reversal(ctx), ctx.saved_tensors[: len(ctx.cell.state) + len(ctx.cell.others)]
        # without retain_graph the states that forward stored are the reversal's alone now, and go as it passes them
        ctx.maybe_clear_saved_tensors()
        return None, None, None, None, *reversal.run(tensors, ctx.needs_input_grad[4:], list(cotangents))


@dataclass
class _Snapshot:
    """The state before a block, and what the block must find as it was."""

    block: int
    leaves: list[torch.Tensor]
    conditions: Conditions


class _Reversal:
    """One backward pass: holds the snapshots on a stack and goes through the blocks from the last to the first."""

    def __init__(self, ctx: Any):
        self.cell, self.schedule, self.offload, self.devices = ctx.cell, ctx.schedule, ctx.offload, ctx.devices
        width = len(self.cell.state)
        saved = ctx.saved_tensors
        stored = [saved[:width]]
        stored += [saved[i : i + width] for i in range(width + len(self.cell.others), len(saved), width)]
        self.held = [
            _Snapshot(block, list(leaves), conditions)
            for block, leaves, conditions in zip(ctx.places, stored, ctx.conditions, strict=True)
        ]

    def run(self, tensors: Sequence[torch.Tensor], wanted: Sequence[bool], grads: list) -> list:
        """Return the gradients of `tensors`, those of the leaves of the state first."""
        # invariant: `grads` are those of the state after `block`, and the top of the stack lies at the block or before
        width, blocks = len(self.cell.state), len(self.schedule.bounds) - 1
        others = [alias(t, needed) for t, needed in zip(tensors[width:], wanted[width:], strict=True)]
        totals: list[torch.Tensor | None] = [None] * len(others)
        for block in reversed(range(blocks)):
            if self.held[-1].block < block:
                self.advance(block, tensors, others)
            needed = wanted[:width] if block == 0 else [True] * width
            # popped in place: a name here would keep the state alive during the next advance
            if not self.through(self.held.pop(), needed, others, grads, totals, check=block == blocks - 1):
                break
        return [*grads, *totals]

    def advance(self, block: int, tensors: Sequence[torch.Tensor], others: list[torch.Tensor]) -> None:
        """Run from the top snapshot to `block` without a graph, storing states on the way and the one at its end."""
        here, bounds = self.held[-1], self.schedule.bounds
        free = self.schedule.snapshots - (len(self.held) - 1)
        places = self.schedule.places(here.block, block + 1, free)

        def run(cell: nn.Module, inputs: Any) -> None:
            start, state = here.block, self.cell.unflatten_state(self.fetched(here))
            for stop in places:
                state = run_without_graph(cell, state, inputs, range(bounds[start], bounds[stop]))
                leaves = tree.flatten(state)[0]
                if self.offload and stop != block:
                    leaves = [host_memory.store(leaf) for leaf in leaves]
                self.held.append(_Snapshot(stop, leaves, _noted(here.conditions, cell, tensors)))
                start = stop

        with here.conditions.restored(self.cell.cell) as buffers:
            self.cell.call(run, others, buffers)

    def fetched(self, snapshot: _Snapshot) -> list[torch.Tensor]:
        """Return the leaves of a snapshot on the devices of the state."""
        return [host_memory.fetch(leaf, device) for leaf, device in zip(snapshot.leaves, self.devices, strict=True)]

    def through(
        self,
        snapshot: _Snapshot,
        needed: Sequence[bool],
        others: list[torch.Tensor],
        grads: list[torch.Tensor | None],
        totals: list[torch.Tensor | None],
        check: bool,
    ) -> bool:
        """Take grads and totals, in place, through one block; return False if there is nothing to take through."""
        cell, bounds = self.cell, self.schedule.bounds
        state = [alias(leaf, need) for leaf, need in zip(self.fetched(snapshot), needed, strict=True)]
        with snapshot.conditions.restored(cell.cell) as buffers:
            entries = cell.leaf_views(others)
            start, stop = bounds[snapshot.block : snapshot.block + 2]
            last = cell.run_on([leaf_view(t) for t in state], entries, buffers, start, stop)
            # BPTT adds the uses of a tensor one by one, from the last update to the first. autograd runs the node that
            # was made last first: handed the totals, these views start each sum with them, and the order is the same
            resumed = [leaf_view(t) for t in entries]
        pairs = [*zip(last, grads, strict=True), *zip(resumed, totals, strict=True)]
        pairs = [(out, grad) for out, grad in pairs if grad is not None and out.requires_grad]
        sources = [t for t in (*state, *others) if t.requires_grad]
        nodes = check_nothing_hidden(last, sources) if check else []
        if not pairs:
            return False
        outputs, seeds = zip(*pairs, strict=True)
        del last, resumed, pairs, entries
        found = iter(torch.autograd.grad(outputs, sources, seeds, allow_unused=True))
        del outputs
        free_nodes(nodes)
        grads[:] = [next(found) if t.requires_grad else None for t in state]
        totals[:] = [next(found) if t.requires_grad else None for t in others]
        return True


def _noted(before: Conditions, cell: nn.Module, tensors: Sequence[torch.Tensor]) -> Conditions:
    """Return the conditions of now, without what no update changes."""
    if not before.buffers and not before.generators:
        return before
    # no sharing with conditions noted earlier: these buffers are copies of a moment, whose ids come again
    conditions = Conditions(cell, tensors)
    if not before.buffers:
        conditions.buffers = {}
    if not before.generators:
        conditions.generators = []
    return conditions
