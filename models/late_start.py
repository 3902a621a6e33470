"""Samples of different depth that end together: each begins so late that it has as many cycles as it needs."""

from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.gradients.contract import period_of
from loopgrad.models.cells import State


class LateStart(nn.Module):
    """A cell of which each sample has the last updates alone; until then its state stays as it is.

    As all samples end at the same update, the last k updates of the batch are the last k of each sample, and what they
    keep for backward does not grow with the depth. It takes whole cycles of a cell that knows of the step only which
    one of its cycle it is; of any other cell a sample would have other updates than alone: the estimators' `lengths` is
    for those.

    Args:
        cell: The cell, a `Cycled` or a wrapper of one.
        begins: (batch,) ints, the first update of each sample, a multiple of cell.period.
        device: Of the state.
    """

    def __init__(self, cell: nn.Module, begins: Tensor, device: torch.device):
        super().__init__()
        self.cell, self.period = cell, period_of(cell)
        self._last, self._begins = int(begins.max()), begins.to(device)

    def forward(self, state: State, inputs: Any, step: int) -> State:
        """Apply the update to the samples that have begun."""
        after = self.cell(state, inputs, step)
        if step >= self._last:
            return after
        begun = self._begins <= step
        pairs = {name: (new, state[name]) for name, new in after.items()}
        # what is handed through stays the same tensor: estimators go by that
        return {
            name: new if new is old else torch.where(begun.view(-1, *[1] * (new.dim() - 1)), new, old)
            for name, (new, old) in pairs.items()
        }
