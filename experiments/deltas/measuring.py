"""What is measured on one set of trained weights: where the recursion goes, and what that means for its gradients.

Nothing here is trained; the weights are frozen, the samples held out, and every estimator sees the same ones.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from loopgrad.analysis import (
    StateMap,
    Thresholds,
    Trace,
    Verdicts,
    cast,
    classify,
    eigenvalues,
    find_fixed_points,
    gradient_gaps,
    lyapunov,
    multistart,
    record,
    rounding_error,
)
from loopgrad.analysis.counters import SavedBytes
from loopgrad.experiments.deltas.examination import Examination, Subject, at
from loopgrad.experiments.deltas.findings import at_depth, beside, of_search
from loopgrad.experiments.records import FollowedRecord
from loopgrad.experiments.training.answers import FOLLOWED, followed, segments_of
from loopgrad.experiments.training.probe import Probe
from loopgrad.experiments.training.walk import by_cycle
from loopgrad.gradients import BPTT, CheckpointedBPTT, Estimator, TruncatedBPTT, tree
from loopgrad.gradients.contract import period_of
from loopgrad.models.recursive import State

LEAST = 4  # samples that make a group


class Depth(NamedTuple):
    """The recursion followed to one depth."""

    trace: Trace
    end: State
    solved: np.ndarray
    verdicts: dict[str, Verdicts]
    of_positions: dict[str, Verdicts] | None


class Seen(NamedTuple):
    """A record, and what its figures are drawn from."""

    record: dict[str, Any]
    depths: tuple[Depth, Depth]
    eigenvalues: np.ndarray
    of_solved: np.ndarray


def examine(subject: Subject, settings: Examination, estimators: Mapping[str, Estimator]) -> Seen:
    """Measure all that the report shows of one set of weights.

    Raises:
        ValueError: The gradient of an estimator cannot be taken on this model.
    """
    segments = settings.segments or subject.trainer.halting.max_segments
    length = subject.model.num_steps
    updates = segments * length
    last = subject.run(subject.state, updates - length)  # where the last segment of training depth starts
    trained = follow(subject, settings, updates, subject.run(last, length))
    beyond = (settings.extrapolate - 1) * updates
    deeper = follow(subject, settings, updates + beyond, subject.run(trained.end, beyond))
    depths = {"training": trained, "extrapolated": deeper}
    found: dict[str, Any] = {
        "name": subject.weights.name,
        **{key: getattr(subject.weights, key) for key in ("group", "estimator", "seed", "step")},
        "samples": len(subject.batch),
        "segments": segments,
        "cycles_per_segment": length // period_of(subject.cell),
        "period": trained.trace.period,
        "dtype": trained.trace.dtype,
        "depths": [at_depth(name, it.trace, it.solved, it.verdicts, it.of_positions) for name, it in depths.items()],
    }
    values, chosen = np.zeros((0, 1), dtype=complex), _each(trained.solved, settings.spectrum_samples)
    if subject.plain and chosen.size:
        values = eigenvalues(*_map_at(subject, trained.end, chosen), k=4)
        found["spectrum"] = {
            "solved": trained.solved[chosen].tolist(),
            "radius": np.abs(values[:, 0]).tolist(),
            "leading": [[value.real, value.imag] for value in values[:, 0]],
        }
    if subject.plain and settings.exponent_samples:
        found["exponents"] = _exponents(subject, deeper, settings)
    found["followed"] = _followed(subject, settings, trained, deeper)
    if settings.gradient_samples and estimators:
        found["gaps"] = _gaps(subject, last, trained.solved, settings, estimators)
    if subject.plain and settings.search_samples:
        found["search"] = _search(subject, deeper, settings)
    return Seen(found, (trained, deeper), values, trained.solved[chosen])


def _followed(subject: Subject, settings: Examination, trained: Depth, deeper: Depth) -> list[FollowedRecord]:
    """Return what some samples, solved and unsolved alike, are answered from segment to segment."""
    rows = _each(trained.solved, FOLLOWED)
    segments = settings.segments or subject.trainer.halting.max_segments
    batch = subject.batch[torch.as_tensor(rows)]
    answered = segments_of(subject.model, subject.trainer, subject.task, batch, segments)
    verdicts = {
        name: {stream: replace(it, label=it.label[rows]) for stream, it in depth.verdicts.items()}
        for name, depth in (("training", trained), ("extrapolated", deeper))
    }
    return followed(subject.task, batch, rows.tolist(), answered, by_cycle(trained.trace)[:, rows], verdicts)


def follow(subject: Subject, settings: Examination, updates: int, end: State) -> Depth:
    """Record the recursion from the initial state to its end, and judge it."""
    wide = torch.float64 if subject.plain else None
    floor = None
    options: dict[str, Any] = {"lags": settings.lags, "reevaluate": wide}
    with subject.trainer.precision(subject.device):
        trace = record(subject.cell, subject.state, subject.x, updates, **options)
        if subject.plain:
            apart = rounding_error(subject.cell, end, subject.x)
            apart = apart[np.isfinite(apart)]  # a diverged sample says nothing of rounding
            floor = 2 * float(np.median(apart)) if apart.size else None
        each = None
        if settings.per == "position":
            each = record(subject.cell, subject.state, subject.x, updates, **options, per="position")
    limits = Thresholds(rtol=settings.rtol)
    verdicts = classify(trace, limits, floor=floor)
    of_positions = None if each is None else classify(each, limits, floor=floor)
    return Depth(trace, end, subject.solved(end), verdicts, of_positions)


def _each(solved: np.ndarray, count: int) -> np.ndarray:
    """Return indices of up to `count` samples, half of them solved where there are enough of both."""
    right, wrong = np.flatnonzero(solved), np.flatnonzero(~solved)
    half = min(right.size, max(count // 2, count - wrong.size))
    return np.sort(np.concatenate([right[:half], wrong[: count - half]]))


def _map_at(subject: Subject, state: State, rows: np.ndarray) -> tuple[StateMap, Tensor]:
    index = torch.from_numpy(rows).to(subject.device)
    f = StateMap(subject.cell, at(index, state), at(index, subject.x))
    return f, f.point


def _exponents(subject: Subject, depth: Depth, settings: Examination) -> dict[str, Any]:
    """Return the largest Lyapunov exponents of samples that are bounded and do not settle."""
    restless = np.flatnonzero(np.isin(depth.verdicts["joint"].label, ["orbit", "cycle"]))
    chosen = restless[_each(depth.solved[restless], settings.exponent_samples)]
    if not chosen.size:
        return {"solved": [], "mean": [], "error": []}
    found = lyapunov(*_map_at(subject, depth.end, chosen), settings.exponent_cycles, transient=8, blocks=8)
    return {
        "solved": depth.solved[chosen].tolist(),
        "mean": found.mean[:, 0].tolist(),
        "error": found.error[:, 0].tolist(),
    }


def _gaps(
    subject: Subject, start: State, solved: np.ndarray, settings: Examination, estimators: Mapping[str, Estimator]
) -> list[dict[str, Any]]:
    """Compare gradients of the segment that starts at `start`, apart for samples that it solves and others."""
    chosen = _each(solved, settings.gradient_samples)
    groups = {"all": chosen}
    for name, mask in (("solved", solved), ("unsolved", ~solved)):
        if mask[chosen].sum() >= LEAST and not mask[chosen].all():
            groups[name] = chosen[mask[chosen]]

    def loss(module: nn.Module, estimator: Estimator, rows: Tensor) -> Tensor:
        return Probe(subject.model, subject.trainer, subject.batch[rows], at(rows, start)).loss(module, estimator)

    forward, subject.model.forward_dtype = subject.model.forward_dtype, None  # gradients in the dtype of the weights
    try:
        own = next(subject.model.parameters()).dtype
        found = gradient_gaps(
            estimators,
            loss,
            subject.model,
            subject.cell,
            cast(start, own),
            cast(subject.x, own),
            subject.model.num_steps,
            samples={name: torch.from_numpy(rows).to(subject.device) for name, rows in groups.items()},
            radius_samples=settings.radius_samples if subject.plain else 0,
        )
    finally:
        subject.model.forward_dtype = forward
    return [beside(gap) for gap in found]


def memory(subject: Subject) -> dict[str, dict[int, int]]:
    """Return the bytes that gradients of 8 samples keep for backward, of 1 to 8 times a segment's updates."""
    length = subject.model.num_steps
    state, x = at(slice(8), subject.state), at(slice(8), subject.x)
    contestants = {"bptt": BPTT(), "checkpointed": CheckpointedBPTT(), "last cycle": TruncatedBPTT(num_cycles=1)}
    owned = [*subject.model.parameters(), *subject.model.buffers(), *tree.tensors(x), *state.values()]

    def held(estimator: Estimator, updates: int) -> int:
        counter = SavedBytes(owned)
        with counter:
            rollout = estimator(subject.cell, state, x, updates)  # noqa: F841 (its graph is what is counted)
        return counter.held()

    lengths = [factor * length for factor in (1, 2, 4, 8)]
    return {name: {updates: held(it, updates) for updates in lengths} for name, it in contestants.items()}


def _search(subject: Subject, depth: Depth, settings: Examination) -> dict[str, Any]:
    """Search fixed points near the ends, and compare the ends of other starts."""
    chosen = _each(depth.solved, settings.search_samples)
    f, end = _map_at(subject, depth.end, chosen)
    size = end.norm(dim=1, keepdim=True)
    learned = _map_at(subject, subject.state, chosen)[1]
    noise = torch.randn(end.shape, generator=torch.Generator().manual_seed(settings.seed), dtype=torch.float64).to(end)
    random = noise / noise.norm(dim=1, keepdim=True) * size
    starts = torch.stack([learned, torch.zeros_like(end), random, end.roll(1, 0)])
    ends = multistart(f, starts, depth.trace.num_steps // depth.trace.period)
    rows = torch.from_numpy(chosen).to(subject.device)
    right = [subject.solved(f.state(z), rows) for z in ends.end]
    points = find_fixed_points(f, end, max_steps=20, max_products=40)
    return of_search(depth.solved[chosen], points, ends, np.stack(right))
