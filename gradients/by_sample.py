"""Updates that carry the gradient of some samples and not of others, where these have updates of different numbers."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.gradients import tree
from loopgrad.gradients.graphs import is_floating
from loopgrad.gradients.recompute import GraphFree
from loopgrad.gradients.stepwise import Stepwise, kept


def lengths_of(cell: nn.Module) -> tuple[list[int], list[int | None]] | None:
    """Return how many updates each sample of a cell has, as an estimator gets it, and where the batch is in the state.

    The host looks once at the device. None for a cell that was given no lengths.
    """
    inner: Any = cell
    while getattr(inner, "is_around", False):
        inner = inner.cell
    if not isinstance(inner, Stepwise) or inner.lengths is None:
        return None
    # what is around a cell has brought the batch to dimension 0
    dims = inner.dims if inner is cell else [None if dim is None else 0 for dim in inner.dims]
    return inner.lengths.tolist(), dims


@dataclass(frozen=True)
class BySample:
    """Which updates carry the gradient of which samples.

    Attributes:
        carrying: For each update, of each sample whether it carries its gradient.
        done: The same, whether the sample has no such update any more.
        dims: Dimension of the batch in each leaf of the state; None where there is none.
        hands_on: Whether leaves that an update leaves alone keep the gradient that they have, where it carries none.
    """

    carrying: list[list[bool]]
    done: list[list[bool]]
    dims: Sequence[int | None]
    hands_on: bool

    @classmethod
    def of(
        cls, cell: nn.Module, num_steps: int, chosen: Callable[[int], Collection[int]], hands_on: bool
    ) -> "BySample | None":
        """Return it for a cell that was given lengths; None for any other, or if all samples have all updates.

        Args:
            cell: As an estimator gets it.
            num_steps: Number of updates, those of the longest sample.
            chosen: The updates that carry the gradient of a sample, given how many it has.
            hands_on: See `BySample`.
        """
        found = lengths_of(cell)
        if found is None or not num_steps or all(length == num_steps for length in found[0]):
            return None
        lengths, dims = found
        of_length = {length: frozenset(chosen(length)) for length in set(lengths)}
        carrying = [[step in of_length[length] for length in lengths] for step in range(num_steps)]
        done = [[step >= length for length in lengths] for step in range(num_steps)]
        return cls(carrying, done, dims, hands_on)

    @property
    def first(self) -> int:
        """The first update before which the state of a sample has a gradient to hand on, or that gives it one."""
        return next(step for step, rows in enumerate(self._through) if any(rows))

    @property
    def _through(self) -> list[list[bool]]:
        """Whether a sample's state leaves an update with its graph."""
        pairs = zip(self.carrying, self.done, strict=True)
        return [[one or other for one, other in zip(*rows, strict=True)] for rows in pairs]

    @property
    def vjps(self) -> int:
        """How many updates carry the gradient of a sample."""
        return sum(map(any, self.carrying))

    def run(self, cell: nn.Module, state: Any, inputs: Any, updates: range) -> Any:
        """Run updates; what one changes is a constant in the samples whose gradient it does not carry.

        A sample that is done hands its state through the updates of the others, with the gradient of it.
        """
        device = next((leaf.device for leaf in tree.tensors(state)), None)
        through = torch.tensor(self._through, device=device)
        for step in updates:
            carries, before = any(self.carrying[step]), tree.flatten(state)[0]
            if carries:
                after, unflatten = tree.flatten(cell(state, tree.own_containers(inputs), step))
            else:
                with GraphFree(cell):
                    after, unflatten = tree.flatten(cell(state, tree.own_containers(inputs), step))
            if len(after) != len(before):
                return unflatten(after)  # another structure, which is for the caller to refuse
            found = zip(after, after if carries else before, before, self.dims, strict=True)
            state = unflatten(
                [
                    new if new is old and self.hands_on else _mixed(new, handed, through[step], dim)
                    for new, handed, old, dim in found
                ]
            )
        return state


def _mixed(new: Any, handed: Any, through: Tensor, dim: int | None) -> Any:
    """Return a leaf with the graph of `handed` in some rows, without one in the others."""
    if not is_floating(new):
        return new
    if dim is None or handed.shape != new.shape:
        return handed if handed is new else new.detach()
    return kept(through, handed, new.detach(), dim)
