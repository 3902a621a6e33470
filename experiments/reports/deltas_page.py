"""The page of an analysis: verdicts by outcome, charts, gradients, and what unfolds: the verdicts of every sample."""

from collections.abc import Sequence

import numpy as np

from loopgrad.analysis.verdicts import LABELS
from loopgrad.experiments.records import WeightsRecord
from loopgrad.experiments.reports.conditions import Condition, at_last, conditions, gaps_by_outcome, outcomes, settled
from loopgrad.experiments.reports.films import films
from loopgrad.experiments.reports.html import (
    Bar,
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
from loopgrad.experiments.reports.summary import Spread, percent, significant
from loopgrad.experiments.reports.words import headline, residual, sentence

DEPTHS = ("Training depth", "Extrapolated")
MOST_SAMPLES = 20_000  # whose verdicts are told one by one
MOST_ROWS = 2_000  # of a table
MANY = 24  # lines of a chart


def page(found: Sequence[WeightsRecord], legend: str, thresholds: str) -> Page:
    """Return the page of the records of an analysis.

    Args:
        found: Records whose texts are as a page shows them.
        legend: What the words of the tables mean.
        thresholds: Of the verdicts.
    """
    first, every = found[0], conditions(found)
    sections = [
        Section("verdicts", "Verdicts", [*map(lambda depth: verdicts(every, depth), (0, 1)), Text(legend, small=True)]),
        Section("charts", "Charts", [Charts(charts(found, every))]),
        Section("streams", "By stream", [by_stream(every)]),
    ]
    if rows := gradients(found):
        sections.append(Section("gradients", "Gradients", [rows]))
    if answers := films([(record["name"], record.get("followed", [])) for record in found]):
        sections.append(Section("answers", "Answers, segment by segment", answers))
    sections.append(Section("samples", "Every sample", samples(found)))
    config = first.get("config")
    return Page(
        kind="analysis of trained weights",
        title="Do the latent deltas converge?",
        lead=[headline(every)],
        facts=[("weights", str(len(found))), ("samples of each", str(first["samples"])), *facts(first)],
        sections=[
            *sections,
            recipe(first, config, of_configuration(config), [Text(f"Thresholds: {thresholds}.", small=True)]),
        ],
    )


def verdicts(every: Sequence[Condition], depth: int) -> Table:
    """Return the table of verdicts at one depth, a row for the solved and one for the unsolved samples."""
    rows = []
    for condition in every:
        for outcome, counts in outcomes(condition, depth).items():
            if not (total := sum(counts.values())):
                continue
            it = settled(condition, depth, outcome=outcome)
            told = ", ".join(f"{count} {label}" for label, count in counts.items())
            bars = [Bar(count / total, _colour(label), f"{count} {label}") for label, count in counts.items()]
            rows.append([Cell(condition.name), Cell(outcome), Cell(it.text(), it.count / total), Cell(told, bars=bars)])
            rows[-1].append(number(residual(condition, depth, "joint")))
    cycles = sorted({record["depths"][depth]["cycles"] for it in every for record in it.records})
    caption = f"{DEPTHS[depth]}, {' or '.join(map(str, cycles))} cycles; brackets: 95 % interval"
    return Table(
        caption, ["weights", "outcome", "converged", "verdicts", "residual, all samples"], rows[:MOST_ROWS], LABELS
    )


def _colour(label: str) -> int:
    return LABELS.index(label)


def charts(found: Sequence[WeightsRecord], every: Sequence[Condition]) -> list[Chart]:
    """Return the charts of an analysis, those that there are numbers for."""
    points: dict[str, dict[str, list[Point]]] = {"cosine": {}, "relative_error": {}}
    for record in found:
        for gap in gaps_by_outcome(record):
            for key, own in points.items():
                note = f"{record['name']}, {gap['samples']}"
                own.setdefault(gap["estimator"], []).append(Point(gap["residual_q50"], gap[key], note=note))
    caption = "Each mark: the gradient of the solved or the unsolved samples of one set of weights, beside BPTT's."
    drawn = [
        Chart(
            f"{title} and residual",
            caption,
            "median residual where the gradient is taken",
            label,
            [Series(name, it) for name, it in points[key].items()],
            log_x=True,
            log_y=key == "relative_error",
            lines=False,
        )
        for key, title, label in (
            ("cosine", "Cosine", "cosine"),
            ("relative_error", "Relative error", "relative error"),
        )
    ]
    if len(at_last(every)) <= MANY:
        drawn.append(_over_training(every))
    return [*drawn, _pareto(at_last(every)[:MANY])]


def _over_training(every: Sequence[Condition]) -> Chart:
    series: dict[str, list[Point]] = {}
    for condition in every:
        streams = [record["depths"][0]["streams"]["joint"] for record in condition.records]
        it = Spread.of([(stream["reevaluated"] or stream["residual"])["all"][1] for stream in streams])
        if condition.step is not None:
            series.setdefault(condition.trained, []).append(Point(condition.step, it.mean, it.low, it.high))
    caption = "Median relative residual at training depth; mean over seeds, the band least and greatest."
    lines = [Series(name, points) for name, points in series.items() if len(points) > 1]
    return Chart("Residual over training", caption, "optimiser step", "relative residual", lines, log_y=True)


def _pareto(last: Sequence[Condition]) -> Chart:
    series = []
    for condition in last:
        exact = Spread.of([100 * sum(it["depths"][0]["solved"]) / it["samples"] for it in condition.records])
        if saved := [held / 2**20 for it in condition.records if (held := it.get("saved_bytes"))]:
            series.append(
                Series(condition.trained, [Point(float(np.median(saved)), exact.mean, exact.low, exact.high)])
            )
    caption = "A mark for each estimator at its last step; its line, least and greatest seed."
    return Chart("Accuracy and memory", caption, "saved MiB", "samples exact (%)", series, log_x=True, lines=False)


def by_stream(every: Sequence[Condition]) -> Table:
    """Return the table of what each stream does at both depths."""
    rows = []
    for condition in every:
        for stream in condition.records[0]["depths"][0]["streams"]:
            cells = [Cell(condition.name), Cell(stream)]
            for depth in (0, 1):
                it = settled(condition, depth, stream)
                share = it.count / it.total if it.total else None
                cells += [Cell(it.text(), share), number(residual(condition, depth, stream))]
            rows.append(cells)
    header = ["weights", "stream", "converged", "residual", "converged, deeper", "residual, deeper"]
    return Table(
        "Samples that converge, and the residual: median (5-95 %) over samples, mean over seeds",
        header,
        rows[:MOST_ROWS],
    )


def gradients(found: Sequence[WeightsRecord]) -> Table | None:
    """Return the table of gradients beside BPTT's, a row for each group of samples of each set of weights."""
    keys = ("cosine", "relative_error", "norm_ratio", "residual_q50", "radius_q50")
    rows = [
        [
            Cell(record["name"]),
            Cell(gap["samples"]),
            Cell(str(gap["count"]), gap["count"]),
            Cell(gap["estimator"]),
            *(Cell("-") if (it := gap[key]) is None else Cell(significant(it), it) for key in keys),
        ]
        for record in found
        for gap in record.get("gaps", [])
    ]
    header = ["weights", "samples", "n", "gradient", "cosine", "rel. error", "norm ratio", "residual", "radius"]
    caption = "Gradients of the last segment of the training depth beside float64 BPTT of that segment"
    cut = f"; the first {MOST_ROWS} of {len(rows)} rows" if len(rows) > MOST_ROWS else ""
    return Table(caption + cut, header, rows[:MOST_ROWS]) if rows else None


def samples(found: Sequence[WeightsRecord]) -> list[Part]:
    """Return what unfolds for each set of weights: a row for each sample, with its verdicts and residuals."""
    parts: list[Part] = [Text("Each set of weights unfolds: is a sample solved, and what does each stream do?")]
    left = MOST_SAMPLES
    for record in found:
        if record["samples"] > left:
            parts.append(Text("Further samples are in the records alone: they are too many for a page.", small=True))
            break
        left -= record["samples"]
        words = sentence(Condition(record["name"], None, (record,)), "joint")
        shares = [f"{percent(sum(it['solved']) / record['samples'])} % solved" for it in record["depths"]]
        summary = f"{record['name']}: {shares[0]}, {shares[1]} deeper"
        parts.append(Fold(summary, [Text(words, small=True), _of(record)]))
    return parts


def _of(record: WeightsRecord) -> Table:
    header, columns = ["sample"], []
    for depth, at in zip(record["depths"], ("", ", deeper"), strict=True):
        header.append(f"solved{at}")
        columns.append([Cell("yes" if it else "no") for it in depth["solved"]])
        for name, stream in depth["streams"].items():
            header.append(f"{name}{at}")
            columns.append([Cell(LABELS[label]) for label in stream["labels"]])
    rows = [[Cell(str(i), i), *cells] for i, cells in enumerate(zip(*columns, strict=True))]
    return Table(f"Verdicts of {record['name']}", header, rows)
