"""The page of a sweep: a row for each combination of what varies, and the curves of all of them."""

from collections.abc import Sequence

from loopgrad.experiments.records import RunRecord
from loopgrad.experiments.reports.comparison_page import MANY, charts, differences_section, runs
from loopgrad.experiments.reports.html import Charts, Page, Section, Table, Text, number
from loopgrad.experiments.reports.html.recipe import facts, recipe
from loopgrad.experiments.reports.references import of_configuration


def page(
    table: tuple[list[str], list[list[str]]],
    apart: tuple[list[str], list[list[str]]],
    sentences: Sequence[str],
    groups: Sequence[dict[str, list[RunRecord]]],
    notes: Sequence[str],
    jobs: int,
) -> Page:
    """Return the page of a sweep; all texts are as a page shows them.

    Args:
        table: Header and rows, a job's number first.
        apart: Header and rows of what differs by more than its spread; none where there is one seed.
        sentences: What the sweep says.
        groups: Of each setting its records by what they are called in its charts.
        notes: Sentences below the table.
        jobs: How many there are.
    """
    header, lines = table
    rows = [[number(cell) for cell in line] for line in lines]
    every = [record for group in groups for records in group.values() for record in records]
    drawn = [
        Charts(charts(group)) if len(group) <= MANY else Text(f"{len(group)} rows cannot be told apart.")
        for group in groups
    ]
    return Page(
        kind="sweep",
        title=f"A sweep of {jobs} jobs",
        lead=sentences,
        facts=[("jobs", str(jobs)), ("runs", str(len(every))), *facts(every[0])],
        sections=[
            Section(
                "rows",
                "What varies",
                [Table("Means over seeds, least and greatest in brackets", header, rows)]
                + [Text(note, small=True) for note in notes],
            ),
            *differences_section(*apart),
            *(
                Section(f"curves-{i}", _title(group, len(groups)), [it])
                for i, (group, it) in enumerate(zip(groups, drawn, strict=True), 1)
            ),
            Section("runs", "Every run", runs(every)),
            recipe(
                every[0], every[0].get("config"), set().union(*(of_configuration(it.get("config")) for it in every))
            ),
        ],
    )


def _title(group: dict[str, list[RunRecord]], count: int) -> str:
    first = next(iter(group.values()))[0]
    return "Curves" if count == 1 else f"Curves: {first['model']} on {first['task']}"
