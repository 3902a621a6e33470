"""Reads CLUTRR from its published CSV files; refuses by file, line and reason. Nothing in a field is evaluated."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from loopgrad.analysis.text_lines import lines_of
from loopgrad.experiments.tasks.stories import MOST_BYTES, MOST_IN_LINE, MOST_STORIES, Story, check_story

NEEDED = ("story", "query", "target_text", "task_name")
PARTS = ("train", "validation", "test")
_QUERY = re.compile(r"\(\s*['\"]([^'\"]+)['\"]\s*,\s*['\"]([^'\"]+)['\"]\s*\)")
_TASK = re.compile(r"task_[0-9]{1,3}\.([0-9]{1,3})", re.ASCII)
_END = re.compile(r"(?<=[.!?])\s+")


def clutrr_file(folder: str | Path, name: str, part: str) -> Path:
    """Return the file of a part, `gen_train234_test2to10_test.csv` for that name and "test".

    Raises:
        ValueError: There is no such file; the message names those of other parts that are there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no folder: give the one that holds {name}_{part}.csv")
    path = folder / f"{name}_{part}.csv"
    if not path.exists():
        others = [other for other in PARTS if (folder / f"{name}_{other}.csv").exists()]
        hint = f": of this name it holds {', '.join(others)}" if others else ""
        raise ValueError(f"{folder}: holds no {path.name}{hint}")
    return path


def read_clutrr(path: str | Path) -> list[Story]:
    """Return the stories of a file, in its order.

    Statements are the sentences of the column `story`, without the brackets around names. The question is made of
    `query`: ('A', 'B') asks how B is related to A; hops are the k of `task_name`, task_1.k, as "k=3".

    Args:
        path: A CSV with a header, one story per line.

    Raises:
        ValueError: The file cannot be read, or a line is malformed; the message names file, line and reason.
    """
    lines = _Lines(path)
    rows = csv.reader(lines, strict=True)
    names = [name.strip() for name in _row(lines, rows) or []]
    for needed in NEEDED:
        if names.count(needed) != 1:
            raise lines.error(f"the header must name the column {needed!r} once")
    places = [names.index(name) for name in NEEDED]
    found = []
    while (row := _row(lines, rows)) is not None:
        if not row:
            continue
        if len(row) != len(names):
            raise lines.error(f"{len(row)} fields where the header names {len(names)}")
        if len(found) == MOST_STORIES:
            raise lines.error(f"at most {MOST_STORIES} stories are read")
        found.append(_story(lines, *(row[place] for place in places)))
    if not found:
        raise ValueError(f"{path}: the file holds a header and no story")
    return found


class _Lines(Iterator[str]):
    """The lines of a file; remembers the number of the last one, for the errors."""

    def __init__(self, path: str | Path):
        self.path, self.number, self._lines = path, 1, lines_of(path, MOST_BYTES, MOST_IN_LINE)

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        return line + "\n"  # a quoted field may go on

    def error(self, reason: str) -> ValueError:
        return ValueError(f"{self.path}, line {self.number}: {reason}")


def _row(lines: _Lines, rows: Iterator[list[str]]) -> list[str] | None:
    try:
        return next(rows, None)
    except csv.Error as error:  # such as a quote that does not end
        raise lines.error(f"not a CSV row: {error}") from None


def _story(lines: _Lines, text: str, query: str, target: str, task: str) -> Story:
    if not (asked := _QUERY.fullmatch(query.strip())):
        raise lines.error(f"query must be two names such as ('Ann', 'Bob'), got {query[:60]!r}")
    if not (hops := _TASK.fullmatch(task.strip())):
        raise lines.error(f"task_name must be such as task_1.3, got {task[:40]!r}")
    plain = " ".join(text.replace("[", "").replace("]", "").split())
    statements = tuple(part for part in _END.split(plain) if part)
    question = f"How is {asked[2]} related to {asked[1]}?"
    story = Story(statements, question, (target.strip(),), f"k={int(hops[1])}")
    if reason := check_story(story):
        raise lines.error(reason)
    return story
