"""Checkpointed backpropagation through time: the exact gradient from a few stored states, by computing twice."""

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from loopgrad.gradients import tree
from loopgrad.gradients.contract import Estimator, Rollout, Stats, check_structure, needs_gradient
from loopgrad.gradients.explicit import ExplicitCell, check_nothing_hidden
from loopgrad.gradients.recompute import Conditions, drop_untouched, run_without_graph


@dataclass(frozen=True)
class CheckpointedBPTT(Estimator):
    """Backpropagation through time with checkpoints: BPTT's gradient, bit for bit on CPU.

    The recursion is cut into segments of k updates and only the state at the start of each is stored. Backward runs a
    segment again from its stored state, this time with a graph, takes its vector-Jacobian product and goes on to
    the segment before it. The whole recursion is one autograd.Function: each parameter receives one gradient.
    Sums are taken in BPTT's own order, so that the bits agree too, unless the state holds one tensor in two places.

    Args:
        schedule: "sqrt" for segments of ceil(sqrt T) updates, or k, the number of updates in a segment.

    Cost: 2T cell evaluations and T vjps, 4/3 of BPTT's FLOPs. Saves ceil(T / k) states, O(sqrt T) at "sqrt"; during
        backward the graph of one segment of k updates lives beside them.
    Not recommended when: T update graphs fit in memory anyway; the cell draws from a generator of its own or depends
        on Python state that changes from call to call (the second run would differ); second derivatives are needed.
        Under autocast the weights are cast anew at each update of backward, and their gradients are summed in the
        weight's own dtype: closer to the exact sum than BPTT's, which adds up the low-precision casts.
    Reference: T. Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv 1604.06174.

    Raises:
        ValueError: schedule is neither "sqrt" nor an int of at least 1.
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

    schedule: Literal["sqrt"] | int = "sqrt"

    kind = "exact"
    memory = "O(sqrt T)"

    def __post_init__(self) -> None:
        """Check the schedule."""
        if self.schedule == "sqrt":
            return
        if isinstance(self.schedule, bool) or not isinstance(self.schedule, int) or self.schedule < 1:
            raise ValueError(
                f'CheckpointedBPTT(schedule={self.schedule!r}) must be "sqrt" or the number of updates in a segment, '
                "an int of at least 1"
            )

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Run the recursion, keeping the state at the start of each segment."""
        if num_steps == 0 or not needs_gradient(cell, state, inputs):
            for step in range(num_steps):
                state = cell(state, inputs, step)
            return Rollout(state, Stats(cell_evaluations=num_steps, vjps=0))
        explicit = ExplicitCell(cell, state, inputs)
        length = math.isqrt(num_steps - 1) + 1 if self.schedule == "sqrt" else self.schedule
        leaves = _Recursion.apply(explicit, inputs, num_steps, length, *explicit.state, *explicit.others)
        return Rollout(explicit.unflatten_state(leaves), Stats(cell_evaluations=2 * num_steps, vjps=num_steps))


class _Recursion(torch.autograd.Function):
    """The whole recursion as one node: (state leaves, other tensors) -> last state leaves."""

    @staticmethod
    def forward(ctx: Any, cell: ExplicitCell, inputs: Any, num_steps: int, length: int, *tensors: torch.Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.cell, ctx.bounds = cell, [*range(0, num_steps, length), num_steps]
        versions = [tensor._version for tensor in tensors]
        snapshots, conditions, state = [], [], cell.state
        for start, stop in itertools.pairwise(ctx.bounds):
            snapshots.append([(leaf, leaf._version) for leaf in state])
            conditions.append(Conditions(cell.cell, tensors, conditions[-1] if conditions else None))
            last = run_without_graph(cell.cell, cell.unflatten_state(state), inputs, range(start, stop))
            check_structure(cell.unflatten_state(state), last)
            state = tree.flatten(last)[0]
        _check_not_changed(versions, tensors, snapshots)
        drop_untouched(conditions, end=Conditions(cell.cell, tensors, conditions[-1]))
        ctx.conditions = conditions
        ctx.save_for_backward(*tensors, *(leaf for snapshot in snapshots[1:] for leaf, _ in snapshot))
        return tuple(state)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "CheckpointedBPTT cannot be differentiated twice (backward got create_graph=True): use BPTT()"
            )
        cell, width = ctx.cell, len(ctx.cell.state)
        tensors, stored = ctx.saved_tensors[: width + len(cell.others)], ctx.saved_tensors[width + len(cell.others) :]
        snapshots = [tensors[:width], *(stored[i : i + width] for i in range(0, len(stored), width))]
        wanted = ctx.needs_input_grad[4:]
        others = [_alias(t, needed) for t, needed in zip(tensors[width:], wanted[width:], strict=True)]
        totals: list[torch.Tensor | None] = [None] * len(others)
        grads: list[torch.Tensor | None] = list(cotangents)
        for segment in reversed(range(len(snapshots))):
            needed = wanted[:width] if segment == 0 else [True] * width
            state = [_alias(leaf, need) for leaf, need in zip(snapshots[segment], needed, strict=True)]
            with ctx.conditions[segment].restored(cell.cell) as buffers:
                entries = [_entry(t) for t in others]
                start, stop = ctx.bounds[segment : segment + 2]
                last = cell.run_on([_entry(t) for t in state], entries, buffers, start, stop)
                # made last, so run first: each sum continues from its total, in the order in which BPTT adds
                resumed = [_entry(t) for t in entries]
            pairs = [*zip(last, grads, strict=True), *zip(resumed, totals, strict=True)]
            pairs = [(out, grad) for out, grad in pairs if grad is not None and out.requires_grad]
            sources = [t for t in (*state, *others) if t.requires_grad]
            if segment == len(snapshots) - 1:
                check_nothing_hidden(last, sources)
            if not pairs:
                break
            outputs, seeds = zip(*pairs, strict=True)
            found = iter(torch.autograd.grad(outputs, sources, seeds, allow_unused=True))
            grads = [next(found) if t.requires_grad else None for t in state]
            totals = [next(found) if t.requires_grad else None for t in others]
        return None, None, None, None, *grads, *totals


def _alias(tensor: torch.Tensor, requires_grad: bool) -> torch.Tensor:
    return tensor.detach().requires_grad_(requires_grad)


def _entry(tensor: torch.Tensor) -> torch.Tensor:
    # a view: modules that count gradients through hooks cannot do so on the leaves given to autograd.grad
    return tensor.view_as(tensor) if tensor.requires_grad else tensor


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
