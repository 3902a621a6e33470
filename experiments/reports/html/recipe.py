"""How to repeat a report: command, commit, machine, versions, configuration, and what to cite; to be copied."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from loopgrad.experiments.records.kinds import Made
from loopgrad.experiments.reports.html.parts import Cell, Code, Fold, Part, Section, Table, Text
from loopgrad.experiments.reports.references import bibtex

LONGEST = 50_000  # characters of a configuration that are shown


def facts(made: Made) -> list[tuple[str, str]]:
    """Return where and when a record was made."""
    return [("device", made["device"]), ("date", made["date"]), ("commit", made["commit"])]


def recipe(made: Made, config: Any, keys: Iterable[str], more: Iterable[Part] = ()) -> Section:
    """Return the section that says how the first of some records was made.

    Args:
        made: The record.
        config: Its configuration; None where it holds none.
        keys: Of the papers behind it.
        more: Parts after the command, such as commands of single runs.
    """
    versions = [[Cell(name), Cell(version)] for name, version in made["versions"].items()]
    parts: list[Part] = [
        Code("command", made["command"]),
        Text(f"Commit {made['commit']}, {made['date']}, on {made['device']}."),
        *more,
        Fold("Versions", [Table("Versions of what it was computed with", ["package", "version"], versions)]),
    ]
    if isinstance(config, Mapping) and config:
        parts.append(Fold("Configuration", [Code("configuration", configured(config))]))
    parts.append(Fold("What to cite", [Code("BibTeX", bibtex(keys))]))
    return Section("repeat", "How to repeat it", parts)


def configured(config: Any) -> str:
    """Return a configuration as text, cut off where it is longer than any of ours."""
    text = json.dumps(config, indent=1, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\n... cut off after {LONGEST} characters"
