"""Tables, in Markdown and on the console, and how their numbers were made."""

from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from loopgrad.experiments.records.kinds import Made


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def console_table(header: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[str]) -> Table:
    """Return a table for the console; the columns named in `words` are not folded, the others hold numbers."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 0))
    for title in header:
        shown.add_column(title, no_wrap=title in words, justify="left" if title in words else "right")
    for row in rows:
        shown.add_row(*row)
    return shown


def how_made(made: Made) -> list[str]:
    """Return the lines that say how the first of some records was made."""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return [
        "## How this was made",
        "",
        f"- command: `{made['command']}`",
        f"- commit: {made['commit']}; date: {made['date']}; device: {made['device']}",
        f"- versions: {versions}",
    ]
