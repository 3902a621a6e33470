"""The page of one claim: the verdict first, then each difference, the conditions, their curves, and the commands."""

import math
import shlex
import statistics
from collections.abc import Sequence

from loopgrad.experiments.records import ClaimRecord, TrainedRecord
from loopgrad.experiments.reports.claims.verdicts import Finding, findings
from loopgrad.experiments.reports.claims.words import by_condition, is_share, told
from loopgrad.experiments.reports.html import (
    Cell,
    Chart,
    Charts,
    Code,
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
from loopgrad.experiments.reports.summary import Spread

MOST = 500  # trainings, or commands, that are told one by one


def page(record: ClaimRecord, outcome: str, table: tuple[list[str], list[list[str]]], charts: Sequence[Chart]) -> Page:
    """Return the page of a claim.

    Args:
        record: Its texts are as a page shows them.
        outcome: The verdict on it, as it was recorded.
        table: Header and rows of the conditions.
        charts: Of what its figure shows.
    """
    header, rows = table
    every = findings(record)
    sentences = list(dict.fromkeys(told(record, every, outcome)))
    seeds = ", ".join(str(seed) for seed in sorted({it["seed"] for it in record["trainings"]}))
    return Page(
        kind="claim, tested",
        title=f"{record['title']}: {outcome}",
        lead=[record["statement"]],
        facts=[("verdict", outcome), ("size", record["size"]), ("seeds", seeds), *facts(record)],
        sections=[
            Section("outcome", "What came out", [*map(Text, sentences), differences(every)]),
            Section(
                "conditions",
                "Conditions",
                [
                    Table("Means over seeds, least and greatest in brackets", header, [_row(row) for row in rows]),
                    Charts(charts),
                ],
            ),
            Section("runs", "Every run", trainings(record["trainings"])),
            recipe(record, None, record["sources"], commands(record)),
        ],
    )


def _row(row: Sequence[str]) -> list[Cell]:
    return [Cell(row[0]), *map(number, row[1:])]


def differences(found: Sequence[Finding]) -> Table:
    """Return the table of what the claim says, and what came of it."""
    rows = []
    for it in found:
        mean = statistics.fmean(it.differences) if it.differences else math.nan
        known = math.isfinite(it.low) and math.isfinite(it.high)
        rows.append(
            [
                Cell(it.says),
                Cell(it.verdict + (f": {it.reason}" if it.reason else "")),
                Cell(f"{mean:+.4g}", mean) if it.differences else Cell("-"),
                Cell(f"{it.low:+.4g} to {it.high:+.4g}", it.low) if known else Cell("-"),
                Cell(f"{it.by:+.4g}", it.by),
                Cell(str(len(it.differences)), len(it.differences)),
            ]
        )
    header = [
        "the claim says that",
        "verdict",
        "mean difference",
        "95 % interval",
        "least that matters",
        "pairs of seeds",
    ]
    return Table("Differences paired by seed, shares as fractions", header, rows)


def chart(
    kind: str, courses: Sequence[tuple[str, Sequence[tuple[float, float | None]]]], xlabel: str, log: bool
) -> Chart:
    """Return the chart of conditions over their axis, seeds together.

    Args:
        kind: What is drawn.
        courses: Of each training its condition, and its points.
        xlabel: The axis.
        log: Whether that is logarithmic.
    """
    at: dict[str, dict[float, list[float]]] = {}
    for name, points in courses:
        own = at.setdefault(name, {})
        for x, y in points:
            if y is not None:
                own.setdefault(x, []).append(y)
    series = [
        Series(name, [Point(x, (it := Spread.of(values)).mean, it.low, it.high) for x, values in sorted(own.items())])
        for name, own in at.items()
    ]
    caption = "Mean over seeds; the band, least and greatest."
    return Chart(kind.capitalize(), caption, xlabel, "samples exact (%)", series, log_x=log)


def trainings(found: Sequence[TrainedRecord]) -> list[Part]:
    """Return the table of all trainings, a row for each seed of a condition."""
    names = list(dict.fromkeys(name for run in found for name in run["readings"]))
    rows = [
        [
            Cell(run["condition"]),
            Cell(str(run["seed"]), run["seed"]),
            Cell(f"{run['train_steps']}", run["train_steps"]),
            *(_reading(name, run["readings"].get(name)) for name in names),
        ]
        for run in found[:MOST]
    ]
    table = Table("Each seed of each condition, shares in percent", ["condition", "seed", "steps", *names], rows)
    cut = [Text(f"The first {MOST} of {len(found)} trainings.", small=True)] if len(found) > MOST else []
    return [table, *cut]


def _reading(name: str, value: float | None) -> Cell:
    if value is None:
        return Cell("-")
    return Cell(f"{100 * value:.1f}", value) if is_share(name) else Cell(f"{value:.4g}", value)


def commands(record: ClaimRecord) -> list[Part]:
    """Return the commands that train the conditions, one by one."""
    groups = by_condition(record["trainings"])
    typed = [
        Code(name, shlex.join(["loopgrad", "train", *runs[0]["overrides"], f"seed={runs[0]['seed']}"]))
        for name, runs in list(groups.items())[:MOST]
    ]
    return [Fold("Commands of single conditions", typed)]
