"""Which rows of a table differ by more than their spread: from the first row of the same task, seed by seed."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from loopgrad.analysis import student_interval
from loopgrad.experiments.records import RunRecord
from loopgrad.experiments.reports import summary
from loopgrad.experiments.reports.sweep_rows import told_of

TITLE = "Beyond the spread?"
HEADER = ["of", "points above the first", "95 % interval", "each seed"]
LEGEND = """\
Percentage points of held-out samples solved (of tokens right, where no sample of a task is solved) above the first row
of the same task, paired by seed: mean, Student's 95 % interval of the mean from three seeds on, and each seed. Where it
holds 0 the difference is within the spread; of many intervals some miss 0 by chance."""
FIRST, NONE, LEAST_SEEDS = "first", "-", 3

Task = tuple[tuple[str, str], ...]


def table(
    head: Sequence[str], names: Sequence[Sequence[str]], rows: Sequence[Sequence[RunRecord]]
) -> tuple[list[str], list[list[str]]]:
    """Return the head and a line per row of each task of which two rows have two seeds in common; else none.

    The first row is the first that has two seeds with a score.

    Args:
        head: Heads of the cells that name a row.
        names: These cells, of each row.
        rows: The records of each row; of runs with the same seed the mean counts.
    """
    tasks: dict[Task, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        tasks[_task(row[0])].append(i)
    lines = [[*names[i], *cells] for group in tasks.values() for i, cells in _lines(group, rows)]
    return ([*head, *HEADER], lines) if lines else ([], [])


def _lines(group: Sequence[int], rows: Sequence[Sequence[RunRecord]]) -> list[tuple[int, list[str]]]:
    key, _ = summary.judged([record for i in group for record in rows[i]])
    scores = {i: _scores(rows[i], key) for i in group}
    first = next((i for i in group if len(scores[i]) > 1), None)
    if first is None:
        return []
    of = "tokens" if key == "token_accuracy" else "samples"
    found = {i: _paired(scores[i], scores[first]) for i in group if i != first}
    if not any(len(pairs) > 1 for pairs in found.values()):
        return []
    return [(i, [of, *(_cells(found[i]) if i in found else [FIRST, NONE, NONE])]) for i in group]


def _task(record: RunRecord) -> Task:
    told = {key: value for key, (_, value) in told_of(record).items()}
    return ("", record["task"]), *sorted((key, told[key]) for key in told if key == "task" or key.startswith("task."))


def _scores(row: Sequence[RunRecord], key: summary.Judge) -> dict[int, float]:
    found: dict[int, list[float]] = defaultdict(list)
    for record in row:
        if (score := record[key]) is not None:
            found[record["seed"]].append(score)
    return {seed: statistics.fmean(scores) for seed, scores in sorted(found.items())}


def _paired(row: Mapping[int, float], first: Mapping[int, float]) -> list[float]:
    return [100 * (score - first[seed]) for seed, score in row.items() if seed in first]


def _cells(found: Sequence[float]) -> list[str]:
    if len(found) < 2:
        return [NONE, NONE, ", ".join(map(_points, found)) or NONE]
    low, high = student_interval(found)
    interval = f"{_points(low)} to {_points(high)}" if len(found) >= LEAST_SEEDS else NONE
    return [_points(statistics.fmean(found)), interval, ", ".join(map(_points, found))]


def _points(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # no -0.0
