"""What README says of `make compare` is what its records say: the command, each number of the table, both sentences."""

import re

import pytest
from repository import ROOT

from loopgrad.experiments.reports import summary, sweep
from loopgrad.experiments.reports.shortcuts import sentence
from loopgrad.experiments.reports.sweep_rows import rows_of

FOLDER = ROOT / "docs/results/shortcuts"
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def found():
    return rows_of(sweep.jobs_of(FOLDER))


def lines_of_table(text: str, first: str) -> list[list[str]]:
    """The cells of the table whose header begins with a word."""
    after = text[text.index(f"| {first} |") :].splitlines()
    lines = after[: next(i for i, line in enumerate(after) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_is_that_of_the_records(found):
    keys, rows = found
    header, _, *lines = lines_of_table(README, "experiment")
    columns = [column for title in header[2:] for column in summary.COLUMNS if column.title == title]
    assert keys == ["experiment"] and header == ["experiment", "estimator", *(it.title for it in columns)]
    assert lines == [[*row.values, row.estimator, *(it.text(row.records, False) for it in columns)] for row in rows]


def test_the_sentences_are_those_of_the_records(found):
    words = " ".join(README.split())
    for name in ("sudoku4", "recall"):
        records = [record for row in found[1] if row.values == [name] for record in row.records]
        assert len(records) == 12 and sentence(records, f"experiment={name}") in words


def test_the_command_is_that_of_the_records_and_of_make(found):
    commands = {record["command"] for row in found[1] for record in row.records}
    commits = {record["commit"] for row in found[1] for record in row.records}
    (command,), (commit,) = commands, commits
    assert f"`{command}`" in README and f"compare: setup\n\t.venv/bin/{command}\n" in (ROOT / "Makefile").read_text()
    assert re.fullmatch("[0-9a-f]{12}", commit), "records are of a clean commit"
    report = (FOLDER / "report.md").read_text()
    assert f"command: `{command}`" in report and commit in report
