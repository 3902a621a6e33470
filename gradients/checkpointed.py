"""Checkpointed backpropagation through time: the exact gradient from a few stored states, by computing twice."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from loopgrad.gradients import budget, host, tree
from loopgrad.gradients.contract import Estimator, Rollout, Stats, check_structure, needs_gradient
from loopgrad.gradients.explicit import ExplicitCell, alias, check_nothing_hidden, entry
from loopgrad.gradients.recompute import Conditions, drop_untouched, run_without_graph
from loopgrad.gradients.schedule import Schedule, binomial, segments


@dataclass(frozen=True)
class CheckpointedBPTT(Estimator):
    """Backpropagation through time with checkpoints: BPTT's gradient, bit for bit on CPU.

    The recursion is cut into segments of k updates and only the state at the start of each is stored. Backward runs a
    segment again from its stored state, this time with a graph, takes its vector-Jacobian product and goes on to
    the segment before it. The whole recursion is one autograd.Function: each parameter receives one gradient.
    Sums are taken in BPTT's own order, so that the bits agree too, unless the state holds one tensor in two places.

    Args:
        schedule: "sqrt" for segments of ceil(sqrt T) updates; k, the number of updates in a segment; or "binomial".
        num_snapshots: With "binomial", the number c of states stored at most beside z_0 and the working state, the one
            that the next update starts from (z_{T-1} between forward and backward).
        memory_budget: Bytes, or a string such as "512MiB": traces the updates of one cycle and picks the schedule of
            fewest evaluations whose foreseen peak fits. Counts what forward and backward allocate, not the loss's own
            tensors, an operator's internal scratch or an allocator's rounding.
        offload: "cpu" to keep stored states of an accelerator in host memory. Has not been run on a GPU.

    Cost: 2T cell evaluations and T vjps, 4/3 of BPTT's FLOPs. Saves ceil(T / k) states, O(sqrt T) at "sqrt"; during
        backward the graph of one segment of k updates lives beside them. "binomial": T + 1 + r T - C(s + r, r - 1)
        evaluations, s = c + 1 and r smallest with C(s + r, s) >= T; memory O(c) with one update graph. A budget adds
        one evaluation and one vjp for each update of a cycle; its memory is O(1) in T but for the inputs. With
        retain_graph=True the states that forward stored stay, up to c more.
    Not recommended when: T update graphs fit in memory anyway; the cell draws from a generator of its own or depends
        on Python state that changes from call to call (the second run would differ); second derivatives are needed.
        Under autocast the weights are cast anew at each update of backward, and their gradients are summed in the
        weight's own dtype: closer to the exact sum than BPTT's, which adds up the low-precision casts.
    Reference: T. Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv 1604.06174; A. Griewank and
        A. Walther, "Algorithm 799: revolve", ACM TOMS 26(1), 2000; A. Gruslys et al., "Memory-efficient
        backpropagation through time", 2016, arXiv 1606.03401.

    Raises:
        ValueError: An argument is not one of those above, or does not go with another; or the budget is too small.
        RuntimeError: The cell changes its state or inputs in place, or uses a tensor that requires grad and is
            none of its parameters; or backward is asked for a graph of itself (create_graph=True).

    Example:
        >>> import torch
        >>> from loopgrad.gradients import CheckpointedBPTT, Stationary
        >>> linear = torch.nn.Linear(3, 3)
        >>> cell = Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear)
        >>> rollout = CheckpointedBPTT()(cell, torch.zeros(2, 3), torch.ones(2, 3), num_steps=16)
        >>> rollout.state.sum().backward()
        >>> rollout.stats
        Stats(cell_evaluations=32, vjps=16)
    """

    schedule: Literal["sqrt", "binomial"] | int = "sqrt"
    num_snapshots: int | None = None
    memory_budget: int | str | None = None
    offload: Literal["cpu"] | None = None

    kind = "exact"
    memory = "O(sqrt T)"

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.schedule not in ("sqrt", "binomial") and (not _is_int(self.schedule) or self.schedule < 1):
            raise ValueError(
                f'CheckpointedBPTT(schedule={self.schedule!r}) must be "sqrt", "binomial" or the number of updates in '
                "a segment, an int of at least 1"
            )
        if self.schedule == "binomial" and (not _is_int(self.num_snapshots) or int(self.num_snapshots or 0) < 0):
            raise ValueError(
                f'CheckpointedBPTT(schedule="binomial", num_snapshots={self.num_snapshots!r}) needs the number of '
                "states to store beside the first one: give num_snapshots, an int of at least 0"
            )
        if self.schedule != "binomial" and self.num_snapshots is not None:
            raise ValueError(
                f"CheckpointedBPTT(num_snapshots={self.num_snapshots!r}) belongs to the binomial schedule, and the "
                f'schedule is {self.schedule!r}: give schedule="binomial" too, or leave num_snapshots out'
            )
        if self.memory_budget is not None:
            budget.parse_bytes(self.memory_budget)
            if self.schedule != "sqrt" or self.num_snapshots is not None:
                raise ValueError(
                    f"CheckpointedBPTT(memory_budget={self.memory_budget!r}) chooses the schedule itself: leave out "
                    f"schedule={self.schedule!r} and num_snapshots={self.num_snapshots!r}, or the budget"
                )
        if self.offload not in (None, "cpu"):
            raise ValueError(f'CheckpointedBPTT(offload={self.offload!r}) must be "cpu" or None')

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Run the recursion, keeping the states that the schedule stores."""
        if num_steps == 0 or not needs_gradient(cell, state, inputs):
            for step in range(num_steps):
                state = cell(state, inputs, step)
            return Rollout(state, Stats(cell_evaluations=num_steps, vjps=0))
        explicit, offload = ExplicitCell(cell, state, inputs), self.offload == "cpu"
        traced = 0
        if self.memory_budget is None:
            schedule = self._schedule(num_steps)
        else:
            footprint = budget.trace(explicit, num_steps, offload)
            traced = footprint.traced
            schedule = budget.choose(footprint, num_steps, budget.parse_bytes(self.memory_budget))
        if schedule is None:
            for step in range(num_steps):
                state = cell(state, inputs, step)
            return Rollout(state, Stats(traced + num_steps, traced + num_steps))
        leaves = _Recursion.apply(explicit, inputs, schedule, offload, *explicit.state, *explicit.others)
        stats = Stats(traced + schedule.evaluations, vjps=traced + num_steps)
        return Rollout(explicit.unflatten_state(leaves), stats)

    def _schedule(self, num_steps: int) -> Schedule:
        if self.num_snapshots is not None:
            return binomial(num_steps, self.num_snapshots)
        return segments(num_steps, math.isqrt(num_steps - 1) + 1 if self.schedule == "sqrt" else int(self.schedule))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class _Recursion(torch.autograd.Function):
    """The whole recursion as one node: (state leaves, other tensors) -> last state leaves."""

    @staticmethod
    def forward(
        ctx: Any, cell: ExplicitCell, inputs: Any, schedule: Schedule, offload: bool, *tensors: torch.Tensor
    ) -> Any:
        ctx.set_materialize_grads(False)
        bounds, blocks = schedule.bounds, len(schedule.bounds) - 1
        ctx.cell, ctx.schedule, ctx.places = cell, schedule, [0, *schedule.places(0, blocks, schedule.snapshots)]
        ctx.devices = [leaf.device for leaf in cell.state]
        versions = [tensor._version for tensor in tensors]
        snapshots, conditions, state = [], [], cell.state
        for start, stop in itertools.pairwise([*ctx.places, blocks]):
            kept = [host.store(leaf) if offload and start else leaf for leaf in state]
            snapshots.append([(leaf, leaf._version) for leaf in kept])
            conditions.append(Conditions(cell.cell, tensors, conditions[-1] if conditions else None))
            steps = range(bounds[start], bounds[stop])
            last = run_without_graph(cell.cell, cell.unflatten_state(state), inputs, steps)
            check_structure(cell.unflatten_state(state), last)
            state = tree.flatten(last)[0]
        _check_not_changed(versions, tensors, snapshots)
        drop_untouched(conditions, end=Conditions(cell.cell, tensors, conditions[-1]))
        ctx.conditions, ctx.offload = conditions, offload
        ctx.save_for_backward(*tensors, *(leaf for snapshot in snapshots[1:] for leaf, _ in snapshot))
        return tuple(state)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "CheckpointedBPTT cannot be differentiated twice (backward got create_graph=True): use BPTT()"
            )
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
                    leaves = [host.store(leaf) for leaf in leaves]
                self.held.append(_Snapshot(stop, leaves, _noted(here.conditions, cell, tensors)))
                start = stop

        with here.conditions.restored(self.cell.cell) as buffers:
            self.cell.call(run, others, buffers)

    def fetched(self, snapshot: _Snapshot) -> list[torch.Tensor]:
        """Return the leaves of a snapshot on the devices of the state."""
        return [host.fetch(leaf, device) for leaf, device in zip(snapshot.leaves, self.devices, strict=True)]

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
            entries = [entry(t) for t in others]
            start, stop = bounds[snapshot.block : snapshot.block + 2]
            last = cell.run_on([entry(t) for t in state], entries, buffers, start, stop)
            # made last, so run first: each sum continues from its total, in the order in which BPTT adds
            resumed = [entry(t) for t in entries]
        pairs = [*zip(last, grads, strict=True), *zip(resumed, totals, strict=True)]
        pairs = [(out, grad) for out, grad in pairs if grad is not None and out.requires_grad]
        sources = [t for t in (*state, *others) if t.requires_grad]
        if check:
            check_nothing_hidden(last, sources)
        if not pairs:
            return False
        outputs, seeds = zip(*pairs, strict=True)
        del last, resumed, pairs, entries
        found = iter(torch.autograd.grad(outputs, sources, seeds, allow_unused=True))
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


def _check_not_changed(
    versions: list[int], tensors: tuple[torch.Tensor, ...], snapshots: list[list[tuple[torch.Tensor, int]]]
) -> None:
    if any(tensor._version != version for tensor, version in zip(tensors, versions, strict=True)):
        raise RuntimeError(
            "the cell changes state, inputs or a parameter in place, so its updates cannot be run again: "
            "write z + f(z) instead of z.add_(f(z)), or use BPTT()"
        )
    if any(leaf._version != version for snapshot in snapshots for leaf, version in snapshot):
        raise RuntimeError(
            "the cell changes its state in place, so its updates cannot be run again: "
            "write z + f(z) instead of z.add_(f(z)), or use BPTT()"
        )
