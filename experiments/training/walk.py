"""Held-out samples followed from the initial state through all segments, as evaluation runs them: do they settle?"""

import math
from typing import NamedTuple

import numpy as np
import torch

from loopgrad.analysis import Trace, Verdicts, classify, record
from loopgrad.analysis.plots.series import relative_residuals
from loopgrad.analysis.verdicts import LABELS
from loopgrad.experiments.tasks.base import Batch
from loopgrad.experiments.trainer import Trainer
from loopgrad.models.model import Model

LAGS = 16  # cycles back that states are compared, the longest period that is seen; that of an analysis


class Walk(NamedTuple):
    """What the recursion did with some samples.

    Attributes:
        trace: Of all updates, (updates, samples).
        verdicts: By stream, and "joint".
        residuals: Relative residual of each cycle over all streams, (cycles, samples).
    """

    trace: Trace
    verdicts: dict[str, Verdicts]
    residuals: np.ndarray


@torch.no_grad()
def walk(model: Model, trainer: Trainer, batch: Batch) -> Walk:
    """Record and judge the recursion down to the depth of training.

    Args:
        model: The model, whose updates all read the same input; its mode is left as it is.
        trainer: Whose segments and precision count.
        batch: Samples, on the device of the model.
    """
    with trainer.precision(batch.inputs.device):
        x = model.encode(batch.inputs, batch.puzzle_ids)
        updates = trainer.halting.max_segments * model.num_steps
        trace = record(model.cell, model.initial_state(*batch.inputs.shape), x, updates, lags=LAGS)
    return Walk(trace, classify(trace), by_cycle(trace))


def by_cycle(trace: Trace) -> np.ndarray:
    """Return the relative residual of each cycle over all streams, (cycles, samples)."""
    return relative_residuals(trace, "joint", "cycle")[trace.period - 1 :: trace.period]


def settling(model: Model, trainer: Trainer, samples: Batch) -> dict[str, float]:
    """Return how far the first `trainer.verdict_samples` settle: what a log tells beside the scores.

    Returns:
        residual: Median over samples of the relative residual of the last cycle over all streams; left out where it is
        not finite. "verdict@converged" and so on: the share of samples of each verdict. Nothing where no samples are
        asked for, or each update reads an input of its own, so that there is nothing to settle to.
    """
    if not trainer.verdict_samples or model.input_per_update:
        return {}
    found = walk(model, trainer, samples[: trainer.verdict_samples].to(next(model.parameters()).device))
    residual = float(np.median(np.where(np.isnan(found.residuals[-1]), np.inf, found.residuals[-1])))
    labels = found.verdicts["joint"].label
    shares = {f"verdict@{label.replace(' ', '_')}": float((labels == label).mean()) for label in LABELS}
    return {"residual": residual, **shares} if math.isfinite(residual) else shares
