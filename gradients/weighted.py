"""A state whose gradient is multiplied with a weight, and a cell that gives some updates such states."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.gradients import tree
from loopgrad.gradients.graphs import is_floating
from loopgrad.gradients.wrappers import unwrapped


class Weighted(nn.Module):
    """A cell before some of whose updates the gradient of the state is multiplied with a number.

    Args:
        cell: The cell.
        factors: By the number of the update.
    """

    is_around = True

    def __init__(self, cell: nn.Module, factors: dict[int, float]):
        super().__init__()
        self.cell, self.factors = cell, factors

    @property
    def period(self) -> Any:
        """That of the cell."""
        return getattr(unwrapped(self.cell), "period", 1)

    def forward(self, state: Any, inputs: Any, step: int) -> Any:
        """Apply the update."""
        return self.cell(weighted(state, self.factors.get(step, 1.0)), inputs, step)


def weighted(state: Any, weight: float) -> Any:
    """Return a state as it is, its gradient multiplied with a weight."""
    return state if weight == 1 else tree.map_tensors(partial(_weighted, weight), state)


def _weighted(weight: float, leaf: Tensor) -> Tensor:
    return _Weighted.apply(leaf, weight) if is_floating(leaf) else leaf


class _Weighted(torch.autograd.Function):
    """A tensor as it is, its cotangent multiplied with a weight."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * ctx.weight, None
