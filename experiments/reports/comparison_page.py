"""The page of a comparison: what the estimators gave and cost, their curves, every run, and how to repeat it."""

from collections.abc import Callable, Sequence
from typing import Any

from loopgrad.experiments.records import LEVELS, RunRecord
from loopgrad.experiments.records.kinds import Where
from loopgrad.experiments.reports import differences, summary
from loopgrad.experiments.reports.films import films
from loopgrad.experiments.reports.html import (
    Cell,
    Chart,
    Charts,
    Fold,
    Page,
    Point,
    Section,
    Series,
    Table,
    Text,
    number,
)
from loopgrad.experiments.reports.html.parts import Part
from loopgrad.experiments.reports.html.recipe import facts, recipe
from loopgrad.experiments.reports.references import of_configuration

MANY_RUNS = 500  # of which each has a row, and what unfolds below
MANY = 40  # estimators that a chart does not tell apart any more

Groups = dict[str, list[RunRecord]]


def page(found: Sequence[RunRecord], legend: str, notes: Sequence[str] = ()) -> Page:
    """Return the page of the records of a comparison.

    Args:
        found: Records whose texts are as a page shows them.
        legend: What the columns of the table are.
        notes: Sentences below it.
    """
    first, groups = found[0], summary.by_estimator(found)
    seeds = ", ".join(str(seed) for seed in sorted({record["seed"] for record in found}))
    config = {**first.get("config", {}), "estimator": {it["estimator"]: _own(it) for it in reversed(found)}}
    keys = set().union(*(of_configuration(record.get("config")) for record in found))
    answers = films([(f"{it['estimator']}, seed {it['seed']}", it.get("followed", [])) for it in found])
    drawn = Charts(charts(groups)) if len(groups) <= MANY else Text(f"{len(groups)} estimators cannot be told apart.")
    return Page(
        kind="comparison of gradient estimators",
        title=f"{first['model']} on {first['task']}",
        lead=[summary.reading(found)],
        facts=[("seeds", seeds), ("steps", str(first["train_steps"])), *facts(first)],
        sections=[
            Section(
                "estimators", "Estimators", [estimators(groups), *(Text(it, small=True) for it in (legend, *notes))]
            ),
            *differences_section(*apart(found)),
            Section("curves", "Curves", [drawn]),
            Section("residuals", "Residuals", residuals(groups)),
            Section("runs", "Every run", runs(found)),
            *([Section("answers", "Answers, segment by segment", answers)] if answers else []),
            recipe(first, config, keys),
        ],
    )


def _own(record: RunRecord) -> Any:
    return record.get("config", {}).get("estimator")


def estimators(groups: Groups) -> Table:
    """Return the table of all estimators, sorted by numbers that are means over seeds."""
    every = [record for group in groups.values() for record in group]
    columns = summary.columns_of(every)
    rows = [[Cell(name), *(_cell(column, group) for column in columns)] for name, group in groups.items()]
    caption = "Means over seeds, least and greatest in brackets"
    return Table(caption, ["estimator", *(column.title for column in columns)], rows)


def _cell(column: summary.Column, group: Sequence[RunRecord]) -> Cell:
    found = summary.spread(group, *column.path)
    return Cell(column.text(group, always_spread=True), None if found.mean != found.mean else found.mean)


def apart(found: Sequence[RunRecord]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of what differs from the first estimator by more than its spread."""
    groups = summary.by_estimator(found)
    return differences.table(["estimator"], [[name] for name in groups], list(groups.values()))


def differences_section(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Section]:
    """Return the section of a table of differences; none where it has no rows."""
    if not rows:
        return []
    cells = [[number(cell) for cell in row] for row in rows]
    caption = "Above the first row of the same task, paired by seed"
    return [
        Section("differences", differences.TITLE, [Table(caption, header, cells), Text(differences.LEGEND, small=True)])
    ]


def charts(groups: Groups) -> list[Chart]:
    """Return the charts of a comparison: learning, loss, cost, gradient, residuals over updates and training."""
    key = summary.judged([record for group in groups.values() for record in group])[0]
    share = "tokens right (%)" if key == "token_accuracy" else "samples exact (%)"
    exact = lambda record: None if record[key] is None else 100 * record[key]  # noqa: E731

    def against(title: str, xlabel: str, x: Callable[[RunRecord], float | None], log: bool) -> Chart:
        series = [Series(name, _at(group, x, exact)) for name, group in groups.items()]
        caption = "A mark for each estimator; its line, least and greatest seed."
        return Chart(title, caption, xlabel, share, series, log_x=log, lines=False)

    spread = "Mean over seeds; the band, least and greatest."
    return [
        Chart("Learning", spread, "optimiser step", share, _learning(groups, key, 100)),
        Chart("Training loss", "Means of steps in a row, over seeds.", "optimiser step", "loss", _losses(groups)),
        Chart(
            "Training loss and FLOPs",
            "The same losses, by FLOPs of matrix products so far: steps times those of the step that was probed.",
            "FLOPs so far",
            "loss",
            _losses_by_flops(groups),
            log_x=True,
        ),
        against("Accuracy and memory", "saved MiB", lambda it: it["saved_bytes"] and it["saved_bytes"] / 2**20, True),
        against("Accuracy and time", "time / BPTT", lambda it: it["time_ratio_to_bptt"], False),
        against("Accuracy and gradient", "cosine with the exact gradient", lambda it: it["gradient_cosine"], False),
        Chart(
            "Residuals over the updates",
            "Relative distance between updates, medians over samples, means over seeds.",
            "update",
            "relative residual",
            _residual_curves(groups),
            log_y=True,
        ),
        Chart(
            "Residual over training",
            f"Relative residual of the last cycle, median over held-out samples. {spread}",
            "optimiser step",
            "relative residual",
            _learning(groups, "residual", 1),
            log_y=True,
        ),
    ]


def _at(
    group: Sequence[RunRecord], x: Callable[[RunRecord], float | None], y: Callable[[RunRecord], float | None]
) -> list[Point]:
    across, up = summary.Spread.of([x(it) for it in group]), summary.Spread.of([y(it) for it in group])
    return [Point(across.mean, up.mean, up.low, up.high)]


def _learning(groups: Groups, key: str, factor: float) -> list[Series]:
    """Return what each evaluation found, times a factor."""
    found = []
    for name, group in groups.items():
        at: dict[int, list[float]] = {}
        for record in group:
            for step, value in zip(record["curve"]["step"], record["curve"].get(key, []), strict=False):
                if value is not None:
                    at.setdefault(step, []).append(factor * value)
        found.append(Series(name, [Point(step, *_spread(values)) for step, values in sorted(at.items())]))
    return found


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    found = summary.Spread.of(values)
    return found.mean, found.low, found.high


def _losses(groups: Groups) -> list[Series]:
    return [Series(name, _mean_curve([it["curve"]["train_loss"] for it in group])) for name, group in groups.items()]


def _losses_by_flops(groups: Groups) -> list[Series]:
    found = []
    for series, group in zip(_losses(groups), groups.values(), strict=True):
        each = summary.spread(group, "flops").mean
        found.append(Series(series.name, [Point(it.x * each, it.y) for it in series.points if each > 0]))
    return found


def _mean_curve(curves: Sequence[Sequence[float | None]]) -> list[Point]:
    """Return the means at each place of curves that begin at 1, over those that have a value there."""
    found = []
    for i in range(max(map(len, curves), default=0)):
        values = [value for curve in curves if i < len(curve) and (value := curve[i]) is not None]
        if values:
            found.append(Point(i + 1, summary.Spread.of(values).mean))
    return found


def _residual_curves(groups: Groups) -> list[Series]:
    found = []
    for name, group in groups.items():
        for stream in group[0]["residual_curve"]:
            curves = [record["residual_curve"].get(stream, []) for record in group]
            found.append(Series(f"{name}, {stream}", _mean_curve(curves)))
    return found if len(found) <= MANY else []


def residuals(groups: Groups) -> list[Part]:
    """Return the table of residuals by estimator and stream."""
    rows = []
    for name, group in groups.items():
        for stream in (it for it in group[0]["residuals"] if it not in Where.__annotations__):
            kinds = ("update_relative", "map_relative")
            rows.append([Cell(name), Cell(stream), *(_quantiles(group, stream, kind) for kind in kinds)])
    header = ["estimator", "stream", "last update", "cycle map at the gradient"]
    return [Table("Relative residuals, medians over samples (5-95 %), mean over seeds", header, rows)]


def _quantiles(group: list[RunRecord], stream: str, kind: str) -> Cell:
    bands = [summary.spread(group, "residuals", stream, kind, i).mean for i in range(len(LEVELS))]
    return Cell("-") if all(it != it for it in bands) else Cell(summary.band(*bands), bands[1])


def runs(found: Sequence[RunRecord]) -> list[Part]:
    """Return a table of every run, and what unfolds of each: its gradient by groups of parameters."""
    columns = summary.columns_of(found)
    rows = [
        [Cell(it["estimator"]), Cell(str(it["seed"]), it["seed"]), *(_cell(column, [it]) for column in columns)]
        for it in found[:MANY_RUNS]
    ]
    header = ["estimator", "seed", *(column.title for column in columns)]
    parts: list[Part] = [Table("Each seed of each estimator", header, rows)]
    if len(found) > MANY_RUNS:
        parts.append(Text(f"The first {MANY_RUNS} of {len(found)} runs.", small=True))
    groups = [
        [Cell(it["estimator"]), Cell(str(it["seed"]), it["seed"]), Cell(name), *map(_measure, (angle, error))]
        for it in found[:MANY_RUNS]
        for name, values in it.get("gradient_groups", {}).items()
        for angle, error in [(values.get("cosine"), values.get("relative_error"))]
    ]
    if groups:
        header = ["estimator", "seed", "parameters", "cosine", "rel. error"]
        table = Table("Gradients against float64 BPTT by groups of parameters", header, groups[: 10 * MANY_RUNS])
        parts.append(Fold("Gradients by groups of parameters", [table]))
    return parts


def _measure(value: float | None) -> Cell:
    return Cell("-") if value is None else number(f"{value:.4g}")
