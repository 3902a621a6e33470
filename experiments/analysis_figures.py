"""The figures of an analysis: of single recursions from what was recorded, of many weights from records alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from loopgrad.analysis import plots
from loopgrad.analysis.plots import Drawn, Point, Progress, Trade
from loopgrad.experiments.conditions import Condition, at_last, conditions, outcomes
from loopgrad.experiments.examine import Seen, Subject, memory
from loopgrad.experiments.findings import Record
from loopgrad.gradients.recompute import run_without_graph

MANY = 12  # conditions from which on only the last step of each is drawn
TOLD_APART = 8  # lines of one figure, or markers
PICTURED = 48  # samples of the figures that need whole states


def of_one(subject: Subject, seen: Seen, folder: Path, slug: str) -> list[str]:
    """Draw one recursion; return the paths of the PNGs below `folder`, none without matplotlib."""
    trained, deeper = seen.depths
    horizon, segment = trained.trace.num_steps, subject.model.num_steps
    states = _states(subject, deeper.trace.num_steps, deeper.trace.period)
    verdicts = deeper.verdicts["joint"]
    labels = verdicts.label[: states.shape[1]]
    odd = int(np.argmax(deeper.trace.joint_relative[: states.shape[1]]))
    drawn = {
        "residuals": plots.residuals(
            deeper.trace, deeper.solved, segment=segment, horizon=horizon, floor=verdicts.floor
        ),
        "heatmap": plots.heatmap(deeper.trace, verdicts),
        "trajectories": plots.trajectories(states, labels),
        "recurrence": plots.recurrence(states[:, odd]),
    }
    if seen.eigenvalues.size:
        drawn["eigenvalues"] = plots.eigenvalue_cloud(seen.eigenvalues, seen.of_solved)
    measured = memory(subject)
    drawn["memory"] = plots.memory(measured, {name: _law(name, values) for name, values in measured.items()})
    return [_save(it, folder, f"{slug}-{name}") for name, it in drawn.items()]


def _law(name: str, measured: dict[int, int]) -> dict[int, float]:
    """Return what memory should be, from the fewest updates alone: T graphs, about sqrt(T) states, or a constant."""
    first, second = sorted(measured)[:2]
    slope = (measured[second] - measured[first]) / (second - first)
    laws = {
        "bptt": lambda t: measured[first] + slope * (t - first),
        "checkpointed": lambda t: measured[first] * (t / first) ** 0.5,
    }
    return {t: float(laws[name](t)) if name in laws else float(measured[first]) for t in measured}


def of_all(records: Sequence[Record], folder: Path) -> list[str]:
    """Draw what all weights have in common: verdicts, validity of gradients, training, accuracy beside bytes."""
    found, paths = conditions(records), []
    last = at_last(found)
    for at, depth in enumerate(("training", "extrapolated")):
        rows = {
            f"{condition.name}, {outcome}": counts
            for condition in (last if len(found) > MANY else found)
            for outcome, counts in outcomes(condition, at).items()
            if sum(counts.values())
        }
        paths.append(_save(plots.verdict_bars(rows), folder, f"verdicts-{depth}"))
    if points := [point for record in records for point in _points(record)]:
        paths.append(_save(plots.validity(points), folder, "validity"))
    if len(last) > TOLD_APART:
        return paths
    progress = _progress(found)
    if len({row.step for row in progress}) > 1:
        paths.append(_save(plots.over_training(progress), folder, "over-training"))
    trades = _trades(last)
    if len(trades) > 1:
        paths.append(_save(plots.pareto(trades), folder, "pareto"))
    return paths


def _save(drawn: Drawn, folder: Path, name: str) -> str:
    plots.save(drawn, folder / "figures" / name)
    return f"figures/{name}.png"


def _states(subject: Subject, updates: int, period: int) -> np.ndarray:
    """Return the states at the ends of cycles of some samples, all streams as one vector, (cycles + 1, samples, n)."""
    rows = slice(0, PICTURED)
    state, x = {name: z[rows] for name, z in subject.state.items()}, subject.x[rows]
    found = [_flat(state)]
    with subject.trainer.precision(x.device):
        for _ in range(updates // period):
            state = run_without_graph(subject.cell, state, x, range(period))
            found.append(_flat(state))
    return np.stack(found)


def _flat(state: dict[str, torch.Tensor]) -> np.ndarray:
    return torch.cat([z.flatten(1).float() for z in state.values()], dim=1).cpu().numpy()


def _points(record: Record) -> list[Point]:
    return [
        Point(
            gap["estimator"],
            gap["residual_q50"],
            gap["radius_q50"],
            gap["cosine"],
            gap["relative_error"],
            f"{record['name']}, {gap['samples']}",
        )
        for gap in record.get("gaps", [])
        if gap["samples"] != "all" and None not in (gap["residual_q50"], gap["cosine"], gap["relative_error"])
    ]


def _progress(found: Sequence[Condition]) -> list[Progress]:
    rows = []
    for condition in found:
        for record in condition.records:
            if record["step"] is None:
                continue
            joint = record["depths"][0]["streams"]["joint"]
            residual = (joint["reevaluated"] or joint["residual"])["all"][1]
            radii = record.get("spectrum", {}).get("radius")
            radius = float(np.median(radii)) if radii else None
            if residual is not None:
                rows.append(Progress(condition.trained, record["step"], residual, radius))
    return rows


def _trades(found: Sequence[Condition]) -> list[Trade]:
    trades = []
    for condition in found:
        exact = [100 * sum(r["depths"][0]["solved"]) / r["samples"] for r in condition.records]
        saved = [r["saved_bytes"] for r in condition.records if r.get("saved_bytes")]
        if saved:
            trades.append(
                Trade(condition.trained, float(np.median(saved)), float(np.mean(exact)), min(exact), max(exact))
            )
    return trades
