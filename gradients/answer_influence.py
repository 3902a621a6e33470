"""The influence of columns on what is kept of a readout's answers, added up or kept one by one."""

import torch
from torch import Tensor

from loopgrad.gradients.influence import Carried, precisely
from loopgrad.gradients.online_update import Pushed
from loopgrad.gradients.outputs import Saving


class AnswerInfluence:
    """Takes the derivatives of answers in the order of the updates.

    Args:
        saving: What is kept of the answers; None without a readout.

    Attributes:
        found: Of each answer that is kept (rows, numbers, columns); None where it has no derivative.
    """

    def __init__(self, saving: Saving | None):
        self.summed = saving is not None and saving.summed
        self.found: list[Tensor | None] = [None] * (0 if saving is None else saving.rows)

    def take(self, told: Pushed, pattern: Tensor, carried: Carried, place: int) -> None:
        """Take the answer to a state: its own derivative by the columns, and that through the state.

        Args:
            told: The answer and its derivatives.
            pattern: (numbers, columns) where it may depend on a column by itself.
            carried: The influence on the state.
            place: Its number among those that are kept.
        """
        numbers, columns = (torch.arange(size, device=told.through.device) for size in pattern.shape)
        with precisely(told.through):
            fresh = told.immediate.part(numbers, columns, pattern) + carried.read(told.through)
        place = 0 if self.summed else place
        old = self.found[place]
        self.found[place] = fresh if old is None else old + fresh
