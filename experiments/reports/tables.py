"""Tables, in Markdown and on the console, and how their numbers were made."""

from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from loopgrad.experiments.records.kinds import Made
from loopgrad.experiments.reports.inert import code, markdown, shown


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def console_table(header: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[str]) -> Table:
    """Return a table for the console; the columns named in `words` are not folded, the others hold numbers."""
    box = Table(box=SIMPLE_HEAD, padding=(0, 0))
    for title in header:
        box.add_column(Text(shown(title)), no_wrap=title in words, justify="left" if title in words else "right")
    for row in rows:
        box.add_row(*(Text(shown(cell)) for cell in row))
    return box


def how_made(made: Made) -> list[str]:
    """Return the lines that say how the first of some records was made; its text need not be inert."""
    versions = ", ".join(f"{markdown(name)} {markdown(version)}" for name, version in made["versions"].items())
    commit, date, device = (markdown(made[name]) for name in ("commit", "date", "device"))
    return [
        "## How this was made",
        "",
        f"- command: {code(made['command'])}",
        f"- commit: {commit}; date: {date}; device: {device}",
        f"- versions: {versions}",
    ]
