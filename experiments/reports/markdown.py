"""Markdown of reports: a table, and how its numbers were made."""

from collections.abc import Sequence

from loopgrad.experiments.records.kinds import Made


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


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
