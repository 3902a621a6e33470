"""Probes on frozen weights: what an estimator's gradient costs, how far it is from the exact one, whether it settles.

All estimators are probed on the same held-out samples, in the second segment (the states are those after the first).
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
from loopgrad.models import supervision
from loopgrad.models.losses import right_tokens, token_loss
from loopgrad.models.recursive import RecursiveModel


@dataclass(frozen=True)
class Probe:
    """A frozen model with the batch and carried state on which its estimators are compared."""

    model: RecursiveModel
    trainer: Trainer
    batch: Batch
    state: dict[str, Tensor]

    def loss(self, model: nn.Module, estimator: Estimator) -> Tensor:
        """Return the training loss of one segment, in the dtype of the model's weights."""
        state = cast(self.state, next(model.parameters()).dtype)
        halting, depth = self.trainer.halting, self.trainer.halting.depth(None)
        given = () if depth is None else (depth,)
        output = model(state, self.batch.inputs, self.batch.puzzle_ids, estimator, *given)
        solved = right_tokens(output.logits, self.batch.labels)[1]
        of_q = halting.q_loss(output.q_halt, output.q_continue, solved, None)
        if output.pondered is not None:
            of_q = of_q + halting.ponder_weight * output.pondered.ponder.mean()
        return token_loss(output.logits, self.batch.labels, self.trainer.loss_of_token()) + of_q

    def run(self, estimator: Estimator) -> Callable[[], Tensor]:
        """Return the forward pass of a training step, to be timed and measured; the noise goes on from call to call."""
        own = copy.deepcopy(estimator)

        def forward() -> Tensor:
            with self.trainer.precision(self.batch.inputs.device):
                return self.loss(self.model, own)

        return forward


def start(model: RecursiveModel, trainer: Trainer, samples: Batch) -> Probe:
    """Return a probe of `model` on the first batch_size of `samples`, at the start of the second segment."""
    device = next(model.parameters()).device
    batch = samples[: trainer.batch_size].to(device)
    state = supervision.predict(model, batch.inputs, batch.puzzle_ids, 1, trainer.halting.depth(None)).state
    return Probe(model, trainer, batch, state)


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
    names = ("saved_bytes", "peak_bytes", "cell_evaluations", "vjps", "flops")
    return {name: getattr(found, name) for name in names}


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

    For an estimator that differentiates the last k updates only, the map is judged at z_{T-k}; else at z_T.
    """
    model, length = probe.model, probe.model.num_steps
    at = taken_at(estimator, model.cell, length)
    with torch.no_grad():
        x = model.encode(probe.batch.inputs, probe.batch.puzzle_ids)
    trace = record(model.cell, probe.state, x, length, at=at)
    curve = {name: [_median(row) for row in trace.relative[name]] for name in trace.streams}
    return {
        "residuals": {"at": at, "levels": LEVELS, "dtype": trace.map_dtype, **trace.quantiles(LEVELS)},
        "residual_curve": curve,
    }


def _median(row: Any) -> float | None:
    values = [float(value) for value in row if value == value]
    return statistics.median(values) if values else None
