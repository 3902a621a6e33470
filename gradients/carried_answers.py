"""A cell that carries the answers of its readout in its state, for estimators that know of nothing but a last state."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.gradients import tree
from loopgrad.gradients.outputs import Saving, Taken, countable, room_for
from loopgrad.gradients.stepwise import Steps, Stepwise


class CarriedAnswers(nn.Module):
    """(z, answers) -> (cell(z), answers with that of this update).

    Args:
        cell: Asks the readout.
        saving: Of the recursion.
    """

    is_around = True

    def __init__(self, cell: Stepwise, saving: Saving):
        super().__init__()
        self.cell, self.saving = cell, saving

    @property
    def period(self) -> Any:
        """That of the cell."""
        return self.cell.period

    def begin(self, state: Any, plain: Any, steps: Steps) -> Any:
        """Return the state to start from, with room for the answers; the readout is asked once to know their shapes."""
        room = room_for(self.saving, self.cell.once(plain, steps))
        if self.saving.summed:
            return state, room
        return state, [tree.map_tensors(partial(torch.select, dim=0, index=i), room) for i in range(self.saving.count)]

    def forward(self, state: Any, steps: Steps, step: int) -> Any:
        """Apply the update and take in its answer."""
        z, kept = state
        taken = Taken(self.saving, shown=True)
        after = self.cell(z, replace(steps, answers=taken), step)
        for place, leaves in taken.found:
            if self.saving.summed:
                old, unflatten = tree.flatten(kept)
                pairs = zip(old, leaves, strict=True)
                kept = unflatten([a + countable(b) if isinstance(b, Tensor) else b for a, b in pairs])
            else:
                unflatten = tree.flatten(kept[place])[1]
                kept = [*kept[:place], unflatten(leaves), *kept[place + 1 :]]
        return after, kept

    def end(self, state: Any) -> tuple[Any, Any]:
        """Return the last state and what is kept of the answers."""
        z, kept = state
        if self.saving.summed:
            return z, kept
        if not kept:
            return z, None
        unflatten = tree.flatten(kept[0])[1]
        rows = zip(*(tree.flatten(answer)[0] for answer in kept), strict=True)
        return z, unflatten([None if row[0] is None else torch.stack(row) for row in rows])
