"""Which rows of a table differ by more than their spread: from the first row of the same task, seed by seed."""

import math
import statistics
from collections.abc import Sequence

from loopgrad.analysis import student_interval
from loopgrad.experiments.records import RunRecord
from loopgrad.experiments.reports import summary
from loopgrad.experiments.reports.sweep_rows import told_of

TITLE = "Beyond the spread?"
HEADER = ["points above the first", "95 % interval", "each seed"]
LEGEND = """\
Percentage points above the first row of the same task, paired by seed: mean, Student's 95 % interval of the mean, and
each seed. Where the interval holds 0 the difference is within the spread; of many intervals some miss 0 by chance."""


def table(
    head: Sequence[str], names: Sequence[Sequence[str]], rows: Sequence[Sequence[RunRecord]]
) -> tuple[list[str], list[list[str]]]:
    """Return the head and a line per row that has at least two seeds in common with the first row of its task.

    Args:
        head: Heads of the cells that name a row.
        names: These cells, of each row.
        rows: The records of each row, one per seed.
    """
    key, _ = summary.judged([record for row in rows for record in row])
    firsts: dict[tuple[tuple[str, str], ...], Sequence[RunRecord]] = {}
    lines = []
    for own, row in zip(names, rows, strict=True):
        first = firsts.setdefault(_task(row[0]), row)
        found = [] if first is row else _paired(row, first, key)
        if len(found) > 1:
            lines.append([*own, *_cells(found)])
    return ([*head, *HEADER], lines) if lines else ([], [])


def _task(record: RunRecord) -> tuple[tuple[str, str], ...]:
    told = {key: value for key, (_, value) in told_of(record).items()}
    return ("", record["task"]), *sorted((key, told[key]) for key in told if key == "task" or key.startswith("task."))


def _paired(row: Sequence[RunRecord], first: Sequence[RunRecord], key: summary.Judge) -> list[float]:
    others = {record["seed"]: record[key] for record in first}
    pairs = [(record[key], others.get(record["seed"])) for record in sorted(row, key=lambda it: it["seed"])]
    return [100 * (one - other) for one, other in pairs if one is not None and other is not None]


def _cells(found: Sequence[float]) -> list[str]:
    low, high = student_interval(found)
    told = f"{low:+.1f} to {high:+.1f}" if math.isfinite(low) else "-"
    return [f"{statistics.fmean(found):+.1f}", told, ", ".join(f"{it:+.1f}" for it in found)]
