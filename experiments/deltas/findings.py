"""What was measured on trained weights as plain values: the part of a record that the report reads."""

from typing import Any

import numpy as np

from loopgrad.analysis import FixedPoints, GradientGap, Multistart, Trace, Verdicts, sweep_thresholds
from loopgrad.analysis.plots.series import relative_residuals
from loopgrad.analysis.verdicts import LABELS
from loopgrad.experiments.records import LEVELS, OUTCOMES, DepthRecord, StreamRecord


def at_depth(
    name: str,
    trace: Trace,
    solved: np.ndarray,
    verdicts: dict[str, Verdicts],
    of_positions: dict[str, Verdicts] | None = None,
) -> DepthRecord:
    """Return what the recursion did down to one depth.

    Returns:
        name, cycles, updates, solved (a list of 0 and 1), floor; for each stream and "joint": "labels" (an index into
        LABELS per sample), "residual" (of the last cycle as computed) and "reevaluated" (of the cycle map in float64)
        with quantiles per outcome, "rate", and "sweep" (number of converged samples at thresholds times .3, 1, 3). With
        verdicts of positions also "positions": for each stream a text per sample, a digit per position.
    """
    thresholds, floor = verdicts["joint"].thresholds, verdicts["joint"].floor
    swept = sweep_thresholds(trace, thresholds=thresholds, floor=floor)
    streams: dict[str, StreamRecord] = {}
    for stream, verdict in verdicts.items():
        relative = trace.joint_relative if stream == "joint" else trace.map_relative[stream]
        streams[stream] = {
            "labels": [LABELS.index(label) for label in verdict.label],
            "residual": by_outcome(relative_residuals(trace, stream, "cycle")[-1], solved),
            "reevaluated": by_outcome(relative, solved) if trace.reevaluated else None,
            "rate": by_outcome(verdict.rate, solved),
            "sweep": {str(factor): found[stream].counts() for factor, found in swept.items()},
        }
    found: DepthRecord = {
        "name": name,
        "cycles": trace.num_steps // trace.period,
        "updates": trace.num_steps,
        "solved": solved.astype(int).tolist(),
        "floor": floor,
        "thresholds": vars(thresholds),
        "streams": streams,
    }
    if of_positions is not None:
        found["positions"] = {stream: _digits(it) for stream, it in of_positions.items()}
    return found


def _digits(verdicts: Verdicts) -> list[str]:
    """Return for each sample the verdicts of its positions, a digit each: the index into LABELS."""
    return ["".join(str(LABELS.index(label)) for label in row) for row in verdicts.by_position().label]


def by_outcome(values: np.ndarray, solved: np.ndarray) -> dict[str, list[float | None]]:
    """Return quantiles over all samples, the solved and the unsolved; a value that is not finite is the largest."""
    masks = dict(zip(OUTCOMES, (np.ones_like(solved), solved, ~solved), strict=True))
    known = np.where(np.isnan(values), np.inf, values)
    with np.errstate(invalid="ignore"):
        found = {name: np.quantile(known[mask], LEVELS) for name, mask in masks.items() if mask.any()}
    return {name: [_finite(value) for value in quantiles] for name, quantiles in found.items()}


def beside(gap: GradientGap) -> dict[str, Any]:
    """Return one gap: the gradient as a whole, its cosine per group of parameters, residual and radius."""
    whole = gap.table(LEVELS)[0]
    return {**whole, "parameters": {name: _finite(part.cosine) for name, part in gap.parameters.items()}}


def of_search(solved: np.ndarray, points: FixedPoints, ends: Multistart, right: np.ndarray) -> dict[str, Any]:
    """Return what searches for fixed points and other starts found, a list entry per sample."""
    near = {name: [_finite(v) for v in getattr(points, name)] for name in ("residual", "distance", "radius")}
    apart = {name: [_finite(v) for v in getattr(ends, name)] for name in ("spread", "alignment")}
    found = {"solved": solved.tolist(), "found": points.found.tolist(), **near}
    return {**found, "clusters": ends.clusters.tolist(), **apart, "right_from": right.astype(int).tolist()}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
