"""Running a recursion by a schedule of stored states, and going back through it from one stored state to the next."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from loopgrad.gradients import tree
from loopgrad.gradients.checks import check_unchanged, refuse_second_derivative, versions_of
from loopgrad.gradients.contract import check_structure
from loopgrad.gradients.fingerprint import Fingerprints
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import (
    alias,
    is_floating,
    spread,
)
from loopgrad.gradients.observed import Frozen, Watched
from loopgrad.gradients.outputs import Saving, Taken
from loopgrad.gradients.recompute import Conditions, drop_untouched, run_without_graph
from loopgrad.gradients.recursion_node import RecursionNode
from loopgrad.gradients.schedule import Schedule
from loopgrad.gradients.stored_states import StoredStates, apart, fetched, together
from loopgrad.gradients.stretches import Stretches
from loopgrad.gradients.untouched import Untouched


@dataclass
class CheckpointedPass:
    """A forward pass that stores the states its schedule names, and what going back through it needs.

    Attributes:
        states: Stores them.
        saving: At which updates a readout is asked, None for none.
        places: Blocks before which a state is stored.
        rest: For each of these states, its leaves with marks in the place of tensors.
        conditions: For each of these states, those of the next update.
    """

    cell: FunctionalCell
    schedule: Schedule
    states: StoredStates
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
            kept, rest = apart(self.states.store(state) if start else state)
            snapshots.append((kept, versions_of(kept)))
            self.rest.append(rest)
            self.conditions.append(Conditions(cell.cell, tensors, self.conditions[-1] if self.conditions else None))
            after = watched.run(cell.unflatten_state(state), inputs, range(bounds[start], bounds[stop]))
            check_structure(cell.unflatten_state(state), after)
            state = tree.flatten(after)[0]
            if self.verify != "off" and (self.states.form is None or start == 0):  # no other is met exactly
                self.prints.note(bounds[stop], state)
        self.states.end()
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
        reversal, cell = Reversal(ctx.run, ctx.saved_tensors), ctx.run.cell.cell
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


class Reversal:
    """One backward pass: holds the snapshots on a stack and goes through the blocks from the last to the first."""

    def __init__(self, run: CheckpointedPass, saved: Sequence[torch.Tensor]):
        self.cell, self.schedule, self.states, self.prints = run.cell, run.schedule, run.states, run.prints
        self.verify, self.saving = run.verify, run.saving
        self.devices = [leaf.device if isinstance(leaf, torch.Tensor) else None for leaf in self.cell.state]
        queue = iter(saved)
        stored = [self.cell.state, *(together(queue, rest) for rest in run.rest[1:])]
        snapshots = zip(run.places, stored, run.conditions, strict=True)
        self.held = [_Snapshot(block, list(leaves), conditions) for block, leaves, conditions in snapshots]

    def run(self, wanted: Sequence[bool], cotangents: Sequence[torch.Tensor | None]) -> list:
        """Return the gradients of the sources."""
        # invariant: `grads` are those of the state after `block`, and the top of the stack lies at the block or before
        queue, needs = iter(cotangents), iter(wanted)
        grads, first = spread(queue, self.cell.state), spread(needs, self.cell.state)
        stretches = Stretches(self.cell, list(needs), self.saving, list(queue), self.prints)
        bounds, blocks = self.schedule.bounds, len(self.schedule.bounds) - 1
        for block in reversed(range(blocks)):
            if self.held[-1].block < block:
                self.advance(block, stretches.others)
            needed = first if block == 0 else [True] * len(first)
            updates, here = range(bounds[block], bounds[block + 1]), self.held.pop()
            leaves, conditions = self.fetched(here), here.conditions
            del here  # a name here would keep the state alive during the next advance
            found = stretches.through(leaves, conditions, needed, updates, grads, check=block == blocks - 1)
            del leaves
            if found is None and not stretches.of_answers:
                break
            grads = [None] * len(first) if found is None else found
        return [grad for grad, leaf in zip(grads, self.cell.state, strict=True) if is_floating(leaf)] + stretches.totals

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
                if self.verify != "off" and self.states.form is None:
                    self.prints.meet(bounds[stop], leaves)
                if stop != block:
                    leaves = self.states.store(leaves)
                # what the updates have come to: in the copies they were given, or in the module where they set it anew
                now = {n: buffers[n] if b is own[n] else b for n, b in cell.named_buffers()} if buffers else {}
                self.held.append(_Snapshot(stop, leaves, _noted(here.conditions, cell, others, now)))
                start = stop

        asked = self.saving is not None and here.conditions.changing
        answers = Taken(self.saving, since=bounds[-1], again=True) if asked else None  # pyright: ignore
        with here.conditions.restored(self.cell.cell) as buffers:
            self.cell.call(run, others, buffers, answers=answers)
        self.states.end()

    def fetched(self, snapshot: _Snapshot) -> list[Any]:
        """Return the leaves of a snapshot on the devices of the state."""
        return fetched(snapshot.leaves, self.devices)


def _noted(before: Conditions, cell: nn.Module, tensors: list[torch.Tensor], buffers: Any) -> Conditions:
    """Return the conditions of now, without what no update changes."""
    if not before.buffers and not before.generators:
        return before
    conditions = Conditions(cell, tensors)
    conditions.buffers = {name: buffer.detach().clone() for name, buffer in buffers.items()}
    if not before.generators:
        conditions.generators = []
    return conditions
