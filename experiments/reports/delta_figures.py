"""The figures that the weights of an analysis share, drawn from their records."""

from collections.abc import Iterator, Sequence

import numpy as np

from loopgrad.analysis import plots
from loopgrad.analysis.plots import Drawn, Point, Progress, Trade
from loopgrad.experiments.records import WeightsRecord, slug
from loopgrad.experiments.reports.conditions import Condition, at_last, conditions, gaps_by_outcome, outcomes

MANY = 12  # conditions from which on only the last step of each is drawn
TOLD_APART = 8  # lines of one figure, or markers
BARS, POINTS = 400, 5000  # more of them than a page shows are left out
MEMORIES = 100  # figures, the first of so many


def of_all(records: Sequence[WeightsRecord]) -> Iterator[tuple[str, Drawn]]:
    """Draw what all weights have in common: verdicts, validity of gradients, training, accuracy beside bytes.

    Yields:
        The name of a figure, a path without suffix below the report's folder, and the figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    found = conditions(records)
    last = at_last(found)
    for at, depth in enumerate(("training", "extrapolated")):
        rows = {
            f"{condition.name}, {outcome}": counts
            for condition in (last if len(found) > MANY else found)
            for outcome, counts in outcomes(condition, at).items()
            if sum(counts.values())
        }
        if len(rows) <= BARS:
            yield f"figures/verdicts-{depth}", plots.verdict_bars(rows)
    points = [point for record in records for point in _points(record)]
    if 0 < len(points) <= POINTS:
        yield "figures/validity", plots.validity(points)
    for record in [record for record in records if "memory" in record][:MEMORIES]:
        yield f"figures/{slug(record['name'])}-memory", _memory(record)
    if len(last) > TOLD_APART:
        return
    progress = _progress(found)
    if len({row.step for row in progress}) > 1:
        yield "figures/over-training", plots.over_training(progress)
    trades = _trades(last)
    if len(trades) > 1:
        yield "figures/pareto", plots.pareto(trades)


def _memory(record: WeightsRecord) -> Drawn:
    """Draw bytes against updates, as measured and by their law."""
    found = record.get("memory", {})
    measured = {name: {int(t): held for t, held in counts.items()} for name, counts in found.items()}
    laws = {name: _law(name, values) for name, values in measured.items()}
    return plots.memory(measured, laws)


def _law(name: str, measured: dict[int, int]) -> dict[int, float]:
    """Return what memory should be, from the fewest updates alone: T graphs, about sqrt(T) states, or a constant."""
    first, second = sorted(measured)[:2]
    slope = (measured[second] - measured[first]) / (second - first)
    laws = {
        "bptt": lambda t: measured[first] + slope * (t - first),
        "checkpointed": lambda t: measured[first] * (t / first) ** 0.5,
    }
    return {t: float(laws[name](t)) if name in laws else float(measured[first]) for t in measured}


def _points(record: WeightsRecord) -> list[Point]:
    return [
        Point(
            gap["estimator"],
            gap["residual_q50"],
            gap["radius_q50"],
            gap["cosine"],
            gap["relative_error"],
            f"{record['name']}, {gap['samples']}",
        )
        for gap in gaps_by_outcome(record)
    ]


def _progress(found: Sequence[Condition]) -> list[Progress]:
    rows = []
    for condition in found:
        for record in condition.records:
            joint = record["depths"][0]["streams"]["joint"]
            residual = (joint["reevaluated"] or joint["residual"])["all"][1]
            radii = [r for r in record.get("spectrum", {}).get("radius", []) if r is not None]  # None is nan
            radius = float(np.median(radii)) if radii else None
            if (step := record["step"]) is not None and residual is not None:
                rows.append(Progress(condition.trained, step, residual, radius))
    return rows


def _trades(found: Sequence[Condition]) -> list[Trade]:
    trades = []
    for condition in found:
        exact = [100 * sum(r["depths"][0]["solved"]) / r["samples"] for r in condition.records]
        if saved := [held for record in condition.records if (held := record.get("saved_bytes"))]:
            at = float(np.median(saved)), float(np.mean(exact))
            trades.append(Trade(condition.trained, *at, min(exact), max(exact)))
    return trades
