"""What rounding does to one cycle of a recursion: the floor under which a residual says nothing."""

from typing import Any

import numpy as np
import torch
from torch import nn

from loopgrad.analysis.evaluation import leaving_torch_alone
from loopgrad.analysis.latent import Streams
from loopgrad.analysis.precision import cast, evaluated_in, preserved_rng
from loopgrad.analysis.streams import by_rows
from loopgrad.gradients.batch_first import batch_first
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.recompute import run_without_graph


@leaving_torch_alone
def rounding_error(cell: nn.Module, state: Any, inputs: Any, *, batch_dim: Any = 0, latent: Any = None) -> np.ndarray:
    """Return how far a cycle as it is computed lies from the same cycle in float64, per sample, relative to its end.

    ||F(z) - F_64(z)|| / ||F_64(z)|| over all streams, at a state z that was visited. Twice its median is a floor for
    `classify`: below it, a residual is noise. Autocast applies to the first cycle, as it does in training.

    Cost:
        One cycle, and one in float64.
    Not recommended when:
        The point is the initial state, which is not a typical one.

    Args:
        cell: Called as cell(state, inputs, step), `period` updates a cycle; not a coupled cell, whose state is exact.
        state: z, each floating leaf (batch, ...); others are carried along.
        inputs: What the cell reads.
        batch_dim: Where the batch is, as estimators are told.
        latent: Names of the leaves that are the latent state, as in `record`.

    Returns:
        (batch,) float64, dimensionless.

    Raises:
        TypeError: The cell does not compute in the dtype of its state, so that float64 changes nothing.
        ValueError: batch_dim or latent does not fit the state.

    Example:
        >>> import torch
        >>> from loopgrad.analysis import rounding_error
        >>> from loopgrad.gradients import Stationary
        >>> cell = Stationary(lambda z, x: torch.tanh(z))
        >>> bool(0 < rounding_error(cell, torch.linspace(-2, 2, 64).view(1, 64), None)[0] < 1e-6)
        True
    """
    cell, state, inputs = batch_first(cell, state, inputs, batch_dim)
    steps, streams = range(period_of(cell)), Streams.of(state, latent)
    with preserved_rng():
        native = streams.picked(run_without_graph(cell, state, inputs, steps))
    device = native[0].device.type
    with preserved_rng(), evaluated_in(cell, torch.float64), torch.autocast(device, enabled=False):
        wide, x = cast(state, torch.float64), cast(inputs, torch.float64)
        exact = streams.picked(run_without_graph(cell, wide, x, steps))
    if any(leaf.dtype not in (torch.float64, torch.complex128) for leaf in exact):
        raise TypeError(f"the cell returned {exact[0].dtype} for a float64 state: let it follow the dtype of its state")
    apart = torch.stack([_squares(wide - own.to(wide)) for own, wide in zip(native, exact, strict=True)]).sum(dim=0)
    size = torch.stack([_squares(leaf) for leaf in exact]).sum(dim=0)
    return torch.where(apart == 0, 0.0, (apart / size).sqrt()).cpu().numpy()


def _squares(leaf: torch.Tensor) -> torch.Tensor:
    return by_rows(leaf.abs()).square().sum(dim=1)
