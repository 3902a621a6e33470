"""Accuracy by group of held-out samples, such as the number of hops: a table beside that of a comparison or a sweep."""

import re
from collections.abc import Sequence

from loopgrad.analysis import plots
from loopgrad.experiments.records import RunRecord
from loopgrad.experiments.reports import summary

SIZES = (
    summary.Column("parameters", ("parameters",), lambda value: f"{value:,.0f}"),
    summary.Column("GFLOPs", ("flops",), lambda value: f"{value / 1e9:.2f}"),
)
LEGEND = "Held-out samples solved in percent, by group; in brackets after a group how many samples it has."

_LAST_NUMBER = re.compile(r"(?P<before>.*?)(?P<low>\d{1,9})(?:-(?P<high>\d{1,9}))?(?P<after>\D*)")


def named(records: Sequence[RunRecord]) -> list[str]:
    """Return the groups that every record has, in their order; none where some has none."""
    first = list(records[0].get("groups") or {})
    return [name for name in first if all(name in (record.get("groups") or {}) for record in records)]


def header(records: Sequence[RunRecord], names: Sequence[str]) -> list[str]:
    """Return the heads of the columns, a group and its size."""
    groups = records[0].get("groups") or {}
    return [f"{name} ({groups[name]['samples']})" for name in names]


def cells(records: Sequence[RunRecord], names: Sequence[str]) -> list[str]:
    """Return the mean over records of the accuracy of each group, least and greatest in brackets."""
    return [summary.spread(records, "groups", name, "exact_accuracy").text(summary.percent) for name in names]


def table(records: Sequence[RunRecord]) -> tuple[list[str], list[list[str]]]:
    """Return the head and a row per estimator; nothing where there are no groups."""
    names = named(records)
    if not names:
        return [], []
    rows = [[name, *cells(group, names)] for name, group in summary.by_estimator(records).items()]
    return ["estimator", *header(records, names)], rows


def drawn(records: Sequence[RunRecord], labels: Sequence[str]) -> plots.Drawn | None:
    """Draw accuracy over the last number in groups' names, such as hops, a line per label with the spread of records.

    A range, as in "2 facts, 5-8 back", stands at its upper end. None where there are fewer than three groups, or they
    differ in more than that number.
    """
    names = named(records)
    parts = [_LAST_NUMBER.fullmatch(name) for name in names]
    numbers = [int(part["high"] or part["low"]) for part in parts if part is not None]
    around = {(part["before"], part["after"]) if part is not None else None for part in parts}
    if len(set(numbers)) < 3 or len(numbers) < len(names) or len(around) > 1:
        return None
    (before, after), *_ = filter(None, around)
    counted = " ".join(f"{before} {after}".strip(" =").split()) or "group"
    if any(part["high"] for part in parts if part is not None):
        counted += ", upper ends of ranges"
    courses = []
    for record, label in zip(records, labels, strict=True):
        groups = record.get("groups") or {}
        courses.append(plots.Course(label, numbers, [_percent(groups[name]["exact_accuracy"]) for name in names]))
    return plots.conditions(courses, counted, "solved (%)")


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
