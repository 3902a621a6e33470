"""Probes on frozen weights: what an estimator's gradient costs, how far it is from the exact one, whether it settles.

All estimators are probed on the same held-out samples, in the second segment (the states are those after the first),
or in the first where training has no second.
Noise is drawn from copies of an estimator, so that no probe depends on what was drawn before it.
"""

import copy
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.analysis import cast, compare_with_bptt, interleaved, measure, median_ratio, record
from loopgrad.analysis.gradient_points import taken_at
from loopgrad.experiments.records import LEVELS
from loopgrad.experiments.tasks.base import Batch
from loopgrad.experiments.trainer import Trainer
from loopgrad.gradients import BPTT, Estimator
from loopgrad.gradients.contract import period_of
from loopgrad.models import supervision
from loopgrad.models.model import Model, told


@dataclass(frozen=True)
class Probe:
    """A frozen model with the batch and carried state on which its estimators are compared."""

    model: Model
    trainer: Trainer
    batch: Batch
    state: dict[str, Tensor]

    def loss(self, model: nn.Module, estimator: Estimator) -> Tensor:
        """Return the training loss of one segment, in the dtype of the model's weights."""
        state = cast(self.state, next(model.parameters()).dtype)
        assert isinstance(model, Model)
        batch, halting = self.batch, self.trainer.halting
        output, of_tokens, _, solved = model.scored(
            state,
            batch.inputs,
            batch.puzzle_ids,
            batch.labels,
            estimator,
            self.trainer.loss_of_token(),
            *told(halting.depth(None)),
        )
        of_q = halting.q_loss(output.q_halt, output.q_continue, solved, None)
        if output.pondered is not None:
            of_q = of_q + halting.ponder_weight * output.pondered.ponder.mean()
        return of_tokens + of_q

    def run(self, estimator: Estimator) -> Callable[[], Tensor]:
        """Return the forward pass of a training step, to be timed and measured; the noise goes on from call to call."""
        own = copy.deepcopy(estimator)

        def forward() -> Tensor:
            with self.trainer.precision(self.batch.inputs.device):
                return self.loss(self.model, own)

        return forward


def start(model: Model, trainer: Trainer, samples: Batch) -> Probe:
    """Return a probe of `model` on the first batch_size of `samples`, at the start of segment `segment_of`."""
    device = next(model.parameters()).device
    batch = samples[: trainer.batch_size].to(device)
    if segment_of(trainer) == 1:
        return Probe(model, trainer, batch, model.initial_state(*batch.inputs.shape))
    state = supervision.predict(model, batch.inputs, batch.puzzle_ids, 1, trainer.halting.depth(None)).state
    return Probe(model, trainer, batch, state)


def segment_of(trainer: Trainer) -> int:
    """Return the number of the segment that is probed."""
    return min(2, trainer.halting.max_segments)


def times(probe: Probe, estimators: Mapping[str, Estimator], repeats: int) -> dict[str, dict[str, float]]:
    """Time a forward and backward pass under each estimator, in turn, beside BPTT.

    Returns:
        Name -> seconds_per_step (median) and time_ratio_to_bptt (median of the ratios round by round).
    """
    runs = {name: probe.run(estimator) for name, estimator in estimators.items()}
    reference = next((name for name, estimator in estimators.items() if estimator == BPTT()), "reference bptt")
    runs.setdefault(reference, probe.run(BPTT()))
    seconds = interleaved(runs, repeats=repeats)
    return {
        name: {
            "seconds_per_step": statistics.median(seconds[name]),
            "time_ratio_to_bptt": median_ratio(seconds[name], seconds[reference]),
        }
        for name in estimators
    }


def cost(probe: Probe, estimator: Estimator) -> dict[str, Any]:
    """Return the exact costs of one training step: bytes, cell evaluations, vjps, FLOPs."""
    owned = [probe.model, probe.state, probe.batch.inputs, probe.batch.labels]
    # a copy per call: all counts are of the same draw
    found = measure(lambda: probe.run(estimator)(), cell=probe.model.cell, exclude=owned, repeats=0, warmup=0)
    held = {name: getattr(found, name) for name in ("saved_bytes", "peak_bytes")}  # by one segment after the other
    counts = {name: getattr(found, name) for name in ("cell_evaluations", "vjps", "flops")}
    return held | {name: it and it * probe.trainer.segments_per_update for name, it in counts.items()}


def agreement(probe: Probe, estimator: Estimator) -> dict[str, Any]:
    """Compare the estimator's gradient with float64 BPTT on the same batch and carry."""
    found = compare_with_bptt({"it": copy.deepcopy(estimator)}, probe.loss, probe.model)["it"]
    return {
        "gradient_cosine": found.cosine,
        "gradient_relative_error": found.relative_error,
        "gradient_norm_ratio": found.norm_ratio,
        "gradient_groups": {
            name: {"cosine": group.cosine, "relative_error": group.relative_error}
            for name, group in found.groups.items()
        },
    }


def residuals(probe: Probe, estimator: Estimator) -> dict[str, Any]:
    """Return residuals per stream and of the joint cycle map where the gradient is taken, and a curve over updates.

    For an estimator that differentiates the last k updates only, the map is judged at z_{T-k}; else at z_T,
    or where the last cycle begins if each update reads an input of its own.
    """
    model, length = probe.model, probe.model.num_steps
    at = taken_at(estimator, model.cell, length)
    if model.input_per_update:  # there is none for an update beyond the end
        at = min(at, length - period_of(model.cell))
    with torch.no_grad():
        x = model.encode(probe.batch.inputs, probe.batch.puzzle_ids)
    x, xs = (None, x) if model.input_per_update else (x, None)
    trace = record(model.cell, probe.state, x, length, at=at, xs=xs)
    curve = {name: [_median(row) for row in trace.relative[name]] for name in trace.streams}
    return {
        "residuals": {"at": at, "levels": LEVELS, "dtype": trace.map_dtype, **trace.quantiles(LEVELS)},
        "residual_curve": curve,
    }


def _median(row: Any) -> float | None:
    values = [float(value) for value in row if value == value]
    return statistics.median(values) if values else None
