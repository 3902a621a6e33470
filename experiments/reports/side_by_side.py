"""The report of several folders side by side: what each came to, and what their configurations differ in."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.records import RunRecord
from loopgrad.experiments.reports import summary
from loopgrad.experiments.reports.comparison_page import MANY, charts, runs
from loopgrad.experiments.reports.html import Cell, Charts, Page, Section, Table, Text, document, number
from loopgrad.experiments.reports.html.parts import Part
from loopgrad.experiments.reports.html.recipe import recipe
from loopgrad.experiments.reports.inert import inert, markdown, shown
from loopgrad.experiments.reports.poolable import (
    MOST_REASONS,
    Place,
    differences,
    pooled,
    refusals,
    same_task,
    shared,
)
from loopgrad.experiments.reports.references import of_configuration
from loopgrad.experiments.reports.tables import console_table, how_made, table
from loopgrad.experiments.reports.whole import making, say, write

MOST_FOLDERS = 40
LONGEST = 80  # characters of a value that is shown
TIMES = """\
Values are means over seeds, least and greatest in brackets. A time is a ratio to BPTT in the same folder, on the same
machine: it is not set against that of another."""
TASKS = "The tasks differ: a score of one says nothing beside that of another, and each has charts of its own."

Rows = tuple[list[str], list[list[str]]]


def render(folders: Sequence[Path], folder: Path, together: bool, console: Console) -> None:
    """Write report.md and report.html of several folders of comparisons into another one.

    Args:
        folders: Two at least.
        folder: Where the report goes.
        together: Whether seeds of the same estimator are put together.
        console: Where the table is printed.

    Raises:
        ConfigError: A folder has no records of a comparison, or seeds that are to be put together are not comparable;
            the message says what differs.
    """
    common = os.path.commonpath([path.absolute() for path in folders])
    places = [_read(path, os.path.relpath(path, common)) for path in folders]
    if together:
        _check(places)
    with making(folder):
        printed, marked = (_shown(places, how) for how in (shown, markdown))
        rows = _rows(printed, together)
        page = _markdown(marked, places[0].records[0], together)
        single = document(_page(printed, together))
    write(folder, page, {}, single)
    console.print(console_table(rows[0][:6], [row[:6] for row in rows[1]], rows[0][:2]))
    say(console, _told(printed, together))
    say(console, f"The report of {len(places)} folders is in {folder}")


def _read(folder: Path, name: str) -> Place:
    path = folder / "records.jsonl"
    first = records.first(path)
    for key, kind in (("depths", "an analysis"), ("contrasts", "a claim")):
        if key in first:
            raise ConfigError(f"{folder}: holds {kind}, and comparisons and runs alone are set side by side")
    return Place(name, records.read(path, RunRecord))


def _check(places: Sequence[Place]) -> None:
    for one, other, estimator, told in refusals(places):
        raise ConfigError(
            f"pool=true: {estimator} in {shown(one)} and in {shown(other)} cannot be put together: "
            f"{shown('; '.join(told[:3]))[:400]}; leave pool= out to see them side by side"
        )
    if not shared(places):
        raise ConfigError("pool=true: no estimator is in more than one of these folders: leave pool= out")


def _shown(places: Sequence[Place], how: Callable[[str], str]) -> list[Place]:
    return [Place(how(place.name), inert(list(place.records), how)) for place in places]


def _groups(places: Sequence[Place], together: bool) -> list[tuple[str, str, list[RunRecord]]]:
    """Return the rows: where from, the estimator, its records."""
    if together:
        return [("all", name, found) for name, found in pooled(places).items()]
    return [(place.name, name, found) for place in places for name, found in place.estimators.items()]


def _rows(places: Sequence[Place], together: bool) -> Rows:
    every = [record for place in places for record in place.records]
    columns = summary.columns_of(every)
    devices = len({record["device"] for record in every})
    lines = []
    for place, name, found in _groups(places, together):
        seeds = ", ".join(map(str, sorted({record["seed"] for record in found})))
        cells = [
            "-" if together and devices > 1 and column.title == "time / BPTT" else column.text(found, True)
            for column in columns
        ]
        lines.append([place, name, seeds, *cells])
    return ["folder", "estimator", "seeds", *(column.title for column in columns)], lines


def _told(places: Sequence[Place], together: bool) -> str:
    """Return one sentence: what differs, and whether seeds are put together."""
    keys = [key for key, _ in differences(places)]
    differ = f"differ in {', '.join(keys[:12])}{', ...' * (len(keys) > 12)}" if keys else "have one configuration"
    if together:
        return f"{len(places)} folders {differ}; seeds of the same estimator are put together."
    if not shared(places):
        return f"{len(places)} folders {differ}; no estimator is in more than one of them."
    apart = any(True for _ in refusals(places))
    end = "their seeds are kept apart" if apart else "their seeds could be put together: pool=true"
    return f"{len(places)} folders {differ}; {end}."


def _made(places: Sequence[Place]) -> Rows:
    """Return where and when each folder was made."""
    libraries = dict.fromkeys(name for place in places for record in place.records for name in record["versions"])

    def all_of(place: Place, of: Callable[[RunRecord], str]) -> str:
        return ", ".join(dict.fromkeys(map(of, place.records)))

    lines = [[place.name, *(all_of(place, lambda it, key=key: it[key]) for key in _MADE)] for place in places]
    differing = []
    for name in list(libraries)[:100]:
        own = [all_of(place, lambda it, name=name: it["versions"].get(name, "-")) for place in places]
        if len(set(own)) > 1:
            differing.append(name)
            lines = [[*line, value] for line, value in zip(lines, own, strict=True)]
    return ["folder", *_MADE, *differing], lines


_MADE = ("device", "date", "commit")


def _apart(places: Sequence[Place]) -> list[list[str]]:
    found = [[one, other, name, "; ".join(map(_cut, told))] for one, other, name, told in refusals(places)]
    return found[: MOST_REASONS * len(places)]


def _cut(text: str) -> str:
    return text if len(text) <= 2 * LONGEST else f"{text[: 2 * LONGEST - 3]}..."


def _differing(places: Sequence[Place]) -> Rows:
    lines = [[key, *map(_cut, own)] for key, own in differences(places)]
    return ["key", *(place.name for place in places)], lines


_WHY = ["folder", "and", "estimator", "what keeps their seeds apart"]


def _markdown(places: Sequence[Place], made: RunRecord, together: bool) -> str:
    lines = ["# Side by side", "", _told(places, together), "", *table(*_rows(places, together)), "", TIMES, ""]
    if len(same_task(places)) > 1:
        lines += [TASKS, ""]
    for title, (header, rows) in (("What differs", _differing(places)), ("Where they were made", _made(places))):
        lines += [f"## {title}", "", *(table(header, rows) if rows else ["Nothing."]), ""]
    if not together and (apart := _apart(places)):
        lines += ["## Why seeds are not put together", "", *table(_WHY, apart), ""]
    return "\n".join([*lines, *how_made(made), ""])


def _page(places: Sequence[Place], together: bool) -> Page:
    every = [record for place in places for record in place.records]
    header, rows = _rows(places, together)
    sortable = [[Cell(row[0]), Cell(row[1]), *map(number, row[2:])] for row in rows]
    notes: list[Part] = [Text(TIMES, small=True)]
    sections = [Section("estimators", "Estimators", [Table("A row for each estimator", header, sortable), *notes])]
    tasks = same_task(places)
    for i, group in enumerate(tasks, 1):
        series = {
            f"{place}: {name}" if not together else name: found for place, name, found in _groups(group, together)
        }
        drawn = Charts(charts(series)) if len(series) <= MANY else Text(f"{len(series)} cannot be told apart.")
        names = f": {', '.join(place.name for place in group)}" if len(tasks) > 1 else ""
        sections.append(
            Section(f"curves-{i}", f"Curves{names}", [*([Text(TASKS)] if i == 1 < len(tasks) else []), drawn])
        )
    header, rows = _differing(places)
    differing = Table("Keys of the configuration", header, _cells(rows)) if rows else Text("Nothing.")
    sections.append(Section("differences", "What differs", [differing]))
    sections.append(Section("made", "Where they were made", [Table("Folders", *_both(_made(places)))]))
    if not together and (apart := _apart(places)):
        sections.append(
            Section("apart", "Why seeds are not put together", [Table("Folders two by two", _WHY, _cells(apart))])
        )
    keys = set().union(*(of_configuration(record.get("config")) for record in every))
    return Page(
        kind="comparisons side by side",
        title="Side by side",
        lead=[_told(places, together)],
        facts=[("folders", str(len(places))), ("runs", str(len(every)))],
        sections=[*sections, Section("runs", "Every run", runs(every)), recipe(every[0], every[0].get("config"), keys)],
    )


def _both(rows: Rows) -> tuple[list[str], list[list[Cell]]]:
    return rows[0], _cells(rows[1])


def _cells(rows: Sequence[Sequence[str]]) -> list[list[Cell]]:
    return [[Cell(cell) for cell in row] for row in rows]
