"""Running a recursion by a schedule of stored states, and going back through it from one stored state to the next."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from loopgrad.gradients import host_memory, tree
from loopgrad.gradients.checks import check_unchanged, refuse_second_derivative, versions_of
from loopgrad.gradients.contract import check_structure
from loopgrad.gradients.fingerprint import Fingerprints
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import (
    alias,
    check_nothing_hidden,
    free_nodes,
    is_floating,
    leaf_view,
    next_number,
    requires_grad,
    spread,
)
from loopgrad.gradients.observed import Frozen, Watched
from loopgrad.gradients.outputs import Saving, Taken
from loopgrad.gradients.recompute import Conditions, drop_untouched, run_without_graph
from loopgrad.gradients.recursion_node import RecursionNode
from loopgrad.gradients.schedule import Schedule
from loopgrad.gradients.untouched import Untouched


@dataclass
class CheckpointedPass:
    """A forward pass that stores the states its schedule names, and what going back through it needs.

    Attributes:
        saving: At which updates a readout is asked, None for none.
        places: Blocks before which a state is stored.
        rest: For each of these states, its leaves with marks in the place of tensors.
        conditions: For each of these states, those of the next update.
    """

    cell: FunctionalCell
    schedule: Schedule
    offload: bool
    verify: str
    saving: Saving | None = None
    places: list[int] = field(default_factory=list)
    rest: list[list[Any]] = field(default_factory=list)
    conditions: list[Conditions] = field(default_factory=list)

    def run(self, inputs: Any) -> tuple[list[Any], list[torch.Tensor]]:
        """Run the recursion without a graph; return the leaves of its last state, and the tensors kept for backward.

        What a readout gives goes where the inputs say, without its graph.
        """
        cell, bounds, blocks = self.cell, self.schedule.bounds, len(self.schedule.bounds) - 1
        self.places = [0, *self.schedule.places(0, blocks, self.schedule.snapshots)]
        self.prints, watched, snapshots = Fingerprints(), Watched(cell), []
        tensors = [*(leaf for leaf in cell.state if isinstance(leaf, torch.Tensor)), *cell.others]
        versions, state = versions_of(tensors), cell.state
        for start, stop in itertools.pairwise([*self.places, blocks]):
            kept, rest = tree.apart([_stored(leaf) for leaf in state] if self.offload and start else state)
            snapshots.append((kept, versions_of(kept)))
            self.rest.append(rest)
            self.conditions.append(Conditions(cell.cell, tensors, self.conditions[-1] if self.conditions else None))
            after = watched.run(cell.unflatten_state(state), inputs, range(bounds[start], bounds[stop]))
            check_structure(cell.unflatten_state(state), after)
            state = tree.flatten(after)[0]
            if self.verify != "off":
                self.prints.note(bounds[stop], state)
        for written, before in ((tensors, versions), *snapshots):
            check_unchanged(written, before, "its updates cannot be run again")
        if watched.keeps and len(self.places) < blocks:
            raise RuntimeError(
                "the cell keeps what its first update derives of weights or inputs, and this schedule would run that "
                "update once more without a graph: derive it before the recursion, or use a schedule of segments, "
                "such as schedule='sqrt'"
            )
        drop_untouched(self.conditions, end=Conditions(cell.cell, tensors, self.conditions[-1]))
        self.frozen: Frozen = watched.frozen()
        return state, [*(leaf for kept, _ in snapshots[1:] for leaf in kept), *cell.sources]


class CheckpointedRecursion(RecursionNode):
    """The node of a `CheckpointedPass`; it keeps the tensors that the pass stores, and the sources."""

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> Any:
        """Go back through the recursion, block by block."""
        refuse_second_derivative("CheckpointedBPTT")
        reversal, cell = _Reversal(ctx.run, ctx.saved_tensors), ctx.run.cell.cell
        # without retain_graph the states that forward stored are the reversal's alone now, and go as it passes them
        ctx.maybe_clear_saved_tensors()
        ctx.run.frozen.check()
        with Untouched(cell, ctx.run.conditions[0]):
            gradients = reversal.run(ctx.needs_input_grad[3:], cotangents)
            ctx.run.prints.judge("CheckpointedBPTT", ctx.run.verify)
        return None, None, None, *gradients


@dataclass
class _Snapshot:
    """The state before a block, and what the block must find as it was."""

    block: int
    leaves: list[Any]
    conditions: Conditions


class _Reversal:
    """One backward pass: holds the snapshots on a stack and goes through the blocks from the last to the first."""

    def __init__(self, run: CheckpointedPass, saved: Sequence[torch.Tensor]):
        self.cell, self.schedule, self.offload, self.prints = run.cell, run.schedule, run.offload, run.prints
        self.verify, self.saving = run.verify, run.saving
        self.devices = [leaf.device if isinstance(leaf, torch.Tensor) else None for leaf in self.cell.state]
        queue = iter(saved)
        stored = [self.cell.state, *(tree.together(queue, rest) for rest in run.rest[1:])]
        snapshots = zip(run.places, stored, run.conditions, strict=True)
        self.held = [_Snapshot(block, list(leaves), conditions) for block, leaves, conditions in snapshots]

    def run(self, wanted: Sequence[bool], cotangents: Sequence[torch.Tensor | None]) -> list:
        """Return the gradients of the sources."""
        # invariant: `grads` are those of the state after `block`, and the top of the stack lies at the block or before
        queue = iter(cotangents)
        needs, grads = iter(wanted), spread(queue, self.cell.state)
        of_answers = list(queue)
        first = spread(needs, self.cell.state)
        others = self.cell.stand_ins(list(needs))
        totals: list[torch.Tensor | None] = [None] * len(others)
        for i in self.cell.scanned:
            totals[i] = torch.zeros_like(others[i]) if others[i].requires_grad else None
        blocks = len(self.schedule.bounds) - 1
        for block in reversed(range(blocks)):
            if self.held[-1].block < block:
                self.advance(block, others)
            needed = first if block == 0 else [True] * len(first)
            # popped in place: a name here would keep the state alive during the next advance
            found = self.through(self.held.pop(), needed, others, grads, totals, of_answers, block == blocks - 1)
            if not found and not of_answers:
                break
        return [grad for grad, leaf in zip(grads, self.cell.state, strict=True) if is_floating(leaf)] + totals

    def advance(self, block: int, others: list[torch.Tensor]) -> None:
        """Run from the top snapshot to `block` without a graph, storing states on the way and the one at its end."""
        here, bounds = self.held[-1], self.schedule.bounds
        free = self.schedule.snapshots - (len(self.held) - 1)
        places = self.schedule.places(here.block, block + 1, free)

        def run(cell: nn.Module, inputs: Any) -> None:
            own = dict(cell.named_buffers()) if buffers else {}
            start, state = here.block, self.cell.unflatten_state([alias(leaf, False) for leaf in self.fetched(here)])
            for stop in places:
                state = run_without_graph(cell, state, inputs, range(bounds[start], bounds[stop]))
                leaves = tree.flatten(state)[0]
                if self.verify != "off":
                    self.prints.meet(bounds[stop], leaves)
                if self.offload and stop != block:
                    leaves = [_stored(leaf) for leaf in leaves]
                # what the updates have come to: in the copies they were given, or in the module where they set it anew
                now = {n: buffers[n] if b is own[n] else b for n, b in cell.named_buffers()} if buffers else {}
                self.held.append(_Snapshot(stop, leaves, _noted(here.conditions, cell, others, now)))
                start = stop

        with here.conditions.restored(self.cell.cell) as buffers:
            self.cell.call(run, others, buffers)

    def fetched(self, snapshot: _Snapshot) -> list[Any]:
        """Return the leaves of a snapshot on the devices of the state."""
        pairs = zip(snapshot.leaves, self.devices, strict=True)
        return [leaf if device is None else host_memory.fetch(leaf, device) for leaf, device in pairs]

    def through(
        self,
        snapshot: _Snapshot,
        needed: Sequence[bool],
        others: list[torch.Tensor],
        grads: list[torch.Tensor | None],
        totals: list[torch.Tensor | None],
        of_answers: Sequence[torch.Tensor | None],
        check: bool,
    ) -> bool:
        """Take grads and totals, in place, through one block; return False if there is nothing to take through."""
        cell, bounds, since = self.cell, self.schedule.bounds, next_number()
        state = [alias(leaf, need) for leaf, need in zip(self.fetched(snapshot), needed, strict=True)]
        with snapshot.conditions.restored(cell.cell) as buffers:
            start, stop = bounds[snapshot.block : snapshot.block + 2]
            others, scanned = cell.narrowed(others, start, stop), set(cell.scanned)
            entries, taken = cell.leaf_views(others), Taken(self.saving)
            last = cell.run_on([leaf_view(t) for t in state], entries, buffers, start, stop, start, taken)
            # BPTT adds the uses of a tensor one by one, from the last update to the first. autograd runs the node that
            # was made last first: handed the totals, these views start each sum with them, and the order is the same
            resumed = [leaf_view(t) for t in entries]
        self.prints.compare(stop, last)
        # a view has no sparse gradient: such totals are added to afterwards
        sums = [None if i in scanned else total for i, total in enumerate(totals)]
        apart = [total if total is not None and total.is_sparse else None for total in sums]
        dense = [total if kept is None else None for total, kept in zip(sums, apart, strict=True)]
        pairs = [*zip(last, grads, strict=True), *zip(resumed, dense, strict=True)]
        pairs = [(out, grad) for out, grad in pairs if grad is not None and requires_grad(out)]
        pairs += taken.pairs(of_answers)
        sources = [t for t in (*state, *others) if requires_grad(t)]
        nodes = check_nothing_hidden([*last, *taken.tensors], [*sources, *cell.frozen], since) if check else []
        if not pairs:
            return False
        outputs, seeds = zip(*pairs, strict=True)
        del last, resumed, pairs, entries, taken
        found = iter(torch.autograd.grad(outputs, sources, seeds, allow_unused=True))
        del outputs
        free_nodes(nodes)
        grads[:] = [next(found) if requires_grad(t) else None for t in state]
        new = [next(found) if requires_grad(t) else None for t in others]
        for i, gradient in enumerate(new):
            if i not in scanned:
                totals[i] = _sum(gradient, apart[i])
            elif gradient is not None:  # of these updates alone
                cell.of_updates(totals[i], start, stop).copy_(gradient)  # pyright: ignore[reportArgumentType]
        return True


def _sum(new: torch.Tensor | None, total: torch.Tensor | None) -> torch.Tensor | None:
    return new if total is None else total if new is None else new + total


def _stored(leaf: Any) -> Any:
    return host_memory.store(leaf) if isinstance(leaf, torch.Tensor) else leaf


def _noted(before: Conditions, cell: nn.Module, tensors: list[torch.Tensor], buffers: Any) -> Conditions:
    """Return the conditions of now, without what no update changes."""
    if not before.buffers and not before.generators:
        return before
    conditions = Conditions(cell, tensors)
    conditions.buffers = {name: buffer.detach().clone() for name, buffer in buffers.items()}
    if not before.generators:
        conditions.generators = []
    return conditions
