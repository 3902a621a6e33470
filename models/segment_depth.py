"""How deep a segment is: the model's own number of updates, another number of cycles, or for each sample its own."""

from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.gradients import Estimator, Rollout
from loopgrad.gradients.checks import is_int
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.wrappers import unwrapped
from loopgrad.models.cells import Cycled, State
from loopgrad.models.late_start import LateStart
from loopgrad.models.model import checked_depth


def rolled(
    estimator: Estimator,
    cell: nn.Module,
    state: State,
    x: Any,
    num_steps: int,
    depth: int | Tensor | None,
    batch: int,
    device: torch.device,
) -> Rollout:
    """Run a segment by an estimator.

    Args:
        estimator: How the gradient is obtained.
        cell: The update.
        state: Where it starts.
        x: What each update reads.
        num_steps: Updates where depth is None.
        depth: Cycles: None, an int, or (batch,) ints for each sample its own.
        batch: Number of samples.
        device: Of the state.

    Raises:
        TypeError: depth is none of these.
        ValueError: depth is below 1, or of another batch.
    """
    period = period_of(cell)
    if isinstance(depth, Tensor):
        most, lengths = checked_depth(depth, batch) * period, depth * period
        if isinstance(unwrapped(cell), Cycled):
            return estimator(LateStart(cell, most - lengths, device), state, x, most)
        return estimator(cell, state, x, most, lengths=lengths)
    if depth is not None and not is_int(depth, 1):
        raise TypeError(f"depth={depth!r} must be an int of at least 1, ints for each sample, ACT or None")
    return estimator(cell, state, x, num_steps if depth is None else depth * period)
