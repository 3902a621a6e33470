"""The points where gradients are taken: at which update they lie, and residual and spectral radius of samples there."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loopgrad.analysis.precision import preserved_buffers, preserved_rng
from loopgrad.analysis.spectrum import spectral_radius
from loopgrad.analysis.state_map import StateMap
from loopgrad.analysis.summaries import Array
from loopgrad.analysis.trajectory import NoInput, record
from loopgrad.gradients import Estimator, TruncatedBPTT
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.recompute import run_without_graph


def taken_at(estimator: Estimator, cell: nn.Module, num_steps: int) -> int:
    """Return after how many updates the point z lies where an estimator takes its gradient.

    T - k for a truncated one, which takes z_{T-k} as a constant; T for all others. An implicit gradient's fallback is
    not looked at.
    """
    if not isinstance(estimator, TruncatedBPTT):
        return num_steps
    return num_steps - estimator.length(cell, num_steps)


def residual_and_radius(
    cell: nn.Module,
    state: Any,
    inputs: Any,
    num_steps: int,
    at: int,
    wanted: Tensor,
    batch_dim: Any = 0,
    latent: Any = None,
) -> tuple[Array, Array, int]:
    """Return the relative residual of the joint cycle map F and the spectral radius of its Jacobian at z_at, (batch,).

    Last comes `at`; or T - period, if the cell has no input for a cycle from z_at on: then they are taken there.
    F is the cycle that starts there, in float64; the residual's scale is taken over `num_steps` updates from `state`,
    which is z_0. The radius is taken in evaluation mode, of the samples `wanted`; it is nan for the others, and inf
    where z_at or its image is not finite.
    """
    where: dict[str, Any] = {"batch_dim": batch_dim, "latent": latent}
    try:
        with preserved_buffers(cell):
            trace = record(cell, state, inputs, num_steps, at=at, reevaluate=torch.float64, **where)
    except NoInput:
        at = num_steps - period_of(cell)
        with preserved_buffers(cell):
            trace = record(cell, state, inputs, num_steps, at=at, reevaluate=torch.float64, **where)
    radius = np.full(trace.joint.shape, math.nan)
    if not wanted.numel():
        return trace.joint_relative, radius, at
    with preserved_buffers(cell), preserved_rng():
        point = run_without_graph(cell, state, inputs, range(at))
    whole = StateMap(cell, point, inputs, range(at, at + period_of(cell)), **where)
    for row in wanted.tolist():
        with preserved_buffers(cell):
            f = whole.sample(row)
            finite = torch.isfinite(f.point).all() and torch.isfinite(f(f.point)).all()
            radius[row] = spectral_radius(f, f.point)[0] if finite else math.inf
    return trace.joint_relative, radius, at


def rows_of(samples: Mapping[str, Any] | None, batch: int, device: torch.device) -> dict[str, Tensor]:
    """Return each group of samples of `gradient_gaps`, checked, as increasing indices; None is a group of all."""
    if samples is None:
        return {"all": torch.arange(batch, device=device)}
    if not samples:
        raise ValueError("samples is empty: give a name -> mask, or None for all samples")
    return {name: _indices(f"samples[{name!r}]", chosen, batch, device) for name, chosen in samples.items()}


def evenly(rows: Tensor, most: int) -> Tensor:
    """Return at most so many of the rows, evenly spaced, first and last among them."""
    count = min(rows.numel(), most)
    return rows[torch.linspace(0, rows.numel() - 1, count, dtype=torch.float64).round().long().to(rows.device)]


def _indices(name: str, chosen: Any, batch: int, device: torch.device) -> Tensor:
    rows = torch.as_tensor(chosen, device=device)
    if rows.dim() != 1 or rows.is_floating_point() and rows.numel() or rows.is_complex():
        raise TypeError(
            f"{name} has shape {tuple(rows.shape)} and dtype {rows.dtype}: give a mask ({batch},) of bools, or indices"
        )
    if rows.dtype == torch.bool:
        if rows.numel() != batch:
            raise ValueError(f"{name} is a mask of {rows.numel()} samples, and the state has {batch}")
        rows = rows.nonzero()[:, 0]
    if not rows.numel():
        raise ValueError(f"{name} holds no sample, so its loss has no gradient: leave it out")
    rows = rows.long().sort().values
    if rows.unique().numel() < rows.numel() or int(rows[0]) < 0 or int(rows[-1]) >= batch:
        raise ValueError(f"{name} must be different indices in 0 .. {batch - 1}, got {rows.tolist()}")
    return rows
