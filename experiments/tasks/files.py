"""Reads Sudoku puzzles from a file, one per line or the Sudoku-Extreme CSV; refuses by file name, line and reason."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from loopgrad.analysis.text_lines import lines_of
from loopgrad.experiments.tasks.sudoku_solver import BOX_SHAPE, solve

MOST_BYTES, MOST_IN_LINE = 2**31, 10_000  # of a file, of which the largest published has 720 MB
MOST_SOLVED, MOST_GUESSES = 1_000_000, 20_000  # an hour, and some seconds


@dataclass(frozen=True)
class Puzzles:
    """Puzzles with their solutions.

    Attributes:
        questions: (count, size*size) int8, digits 0..size, 0 for a blank.
        answers: (count, size*size) int8, digits 1..size.
        ratings: (count,) int64: guesses of our solver, or the rating that the file states.
    """

    questions: np.ndarray
    answers: np.ndarray
    ratings: np.ndarray

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, rows: np.ndarray) -> "Puzzles":
        return Puzzles(self.questions[rows], self.answers[rows], self.ratings[rows])


def read_puzzles(path: str | Path, size: int) -> Puzzles:
    """Read a file of puzzles.

    Either one puzzle per line, size*size characters, row by row, `.` or `0` for a blank: each is solved, and refused
    unless the solver finds within MOST_GUESSES that it has exactly one solution. Or a CSV whose header names the
    columns question, answer and rating (any order; source and other columns are ignored): each answer is checked
    against its question and the rules, but not for being the only one, which would take hours on the published
    millions. UTF-8, with or without byte order mark; LF, CRLF or CR; blank lines and lines that start with # are
    skipped.

    Args:
        path: The file.
        size: 4, 6 or 9.

    Returns:
        The puzzles in the order of the file.

    Raises:
        ValueError: The file cannot be read, holds no puzzle, or a line is malformed; the message names file, line,
            reason.
    """
    lines = _Lines(Path(path))
    first = next(lines, None)
    if first is None:
        raise ValueError(f"{path}: the file holds no puzzle, only blank lines or comments")
    if "," in first or "question" in first.lower():
        return _read_csv(lines, first, size)
    return _read_boards(lines, first, size)


class _Lines(Iterator[str]):
    """The lines that are neither blank nor comments; remembers the number of the last one, for the errors."""

    def __init__(self, path: Path):
        self.path, self.number, self._lines = path, 0, lines_of(path, MOST_BYTES, MOST_IN_LINE)

    def __next__(self) -> str:
        while True:
            self.number, line = next(self._lines)
            if line.strip() and not line.lstrip().startswith("#"):
                return line

    def error(self, reason: str, number: int | None = None) -> ValueError:
        return ValueError(f"{self.path}, line {self.number if number is None else number}: {reason}")


def _read_boards(lines: _Lines, first: str, size: int) -> Puzzles:
    questions, answers, ratings = [], [], []
    for line in chain([first], lines):
        board = _digits(lines, line.strip(), size, "the puzzle", blanks=True)
        if conflict := _conflict(board, size):
            raise lines.error(f"givens conflict: {conflict}")
        if len(questions) == MOST_SOLVED:
            raise lines.error(f"at most {MOST_SOLVED} puzzles are solved; of a CSV with their answers more are read")
        try:
            solution = solve(board, size, MOST_GUESSES)
        except ValueError as error:
            raise lines.error(f"the puzzle is too hard: {error}") from None
        if solution.board is None:
            raise lines.error("the puzzle has no solution")
        if solution.count > 1:
            raise lines.error(f"the puzzle has more than one solution ({sum(map(bool, board))} givens)")
        questions.append(bytes(board))
        answers.append(bytes(solution.board))
        ratings.append(solution.guesses)
    return _puzzles(questions, answers, ratings, size)


def _read_csv(lines: _Lines, header: str, size: int) -> Puzzles:
    names = [name.strip().lower() for name in _row(lines, csv.reader([header], strict=True)) or []]
    for needed in ("question", "answer", "rating"):
        if names.count(needed) != 1:
            raise lines.error(
                f"a line with a comma heads a CSV, and must name the column {needed!r} once; it names {_named(names)}: "
                "expected source,question,answer,rating"
            )
    question_at, answer_at, rating_at = (names.index(name) for name in ("question", "answer", "rating"))
    questions, answers, ratings, numbers = [], [], [], []
    rows = csv.reader(lines, strict=True)
    while (row := _row(lines, rows)) is not None:
        if len(row) != len(names):
            raise lines.error(f"{len(row)} fields where the header names {len(names)}")
        questions.append(bytes(_digits(lines, row[question_at].strip(), size, "question", blanks=True)))
        answers.append(bytes(_digits(lines, row[answer_at].strip(), size, "answer", blanks=False)))
        ratings.append(_rating(lines, row[rating_at].strip()))
        numbers.append(lines.number)
    if not questions:
        raise ValueError(f"{lines.path}: the file holds a header and no puzzle")
    puzzles = _puzzles(questions, answers, ratings, size)
    _check_answers(lines, puzzles, numbers, size)
    return puzzles


def _named(names: list[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:8])
    return f"[{shown}]" if len(names) <= 8 else f"[{shown}, ...], {len(names)} in all"


def _row(lines: _Lines, rows: Iterator[list[str]]) -> list[str] | None:
    try:
        return next(rows, None)
    except csv.Error as error:  # such as a quote that does not end: the field would go on until it is too long
        raise lines.error(f"not a CSV row: {error}") from None


def _rating(lines: _Lines, text: str) -> int:
    if not re.fullmatch("[+-]?[0-9]+", text):
        raise lines.error(f"rating must be an integer, got {text[:40]!r}")
    if len(text) > 18:  # any of so many digits fits 64 bits
        raise lines.error(f"rating has {len(text)} digits, at most 18 can be read")
    return int(text)


def _digits(lines: _Lines, text: str, size: int, what: str, blanks: bool) -> list[int]:
    if len(text) != size * size:
        fitting = [other for other in BOX_SHAPE if other**2 == len(text)]
        hint = f": set size={fitting[0]}" if fitting else ""
        raise lines.error(f"{what} has {len(text)} characters, {size * size} needed for size {size}{hint}")
    allowed = ".0123456789"[: size + 2] if blanks else "123456789"[:size]
    if wrong := set(text) - set(allowed):
        at = min(map(text.index, wrong))
        blank = " or `.` or `0` for a blank" if blanks else ""
        raise lines.error(f"{what} has {text[at]!r} at character {at + 1}; allowed are 1..{size}{blank}")
    return list(map(int, text.replace(".", "0")))


def _puzzles(questions: list[bytes], answers: list[bytes], ratings: list[int], size: int) -> Puzzles:
    def boards(rows: list[bytes]) -> np.ndarray:
        return np.frombuffer(b"".join(rows), dtype=np.int8).reshape(len(rows), size * size)

    return Puzzles(boards(questions), boards(answers), np.array(ratings, dtype=np.int64))


def _conflict(board: list[int], size: int) -> str:
    height, width = BOX_SHAPE[size]
    seen: dict[tuple[str, int, int], int] = {}
    for cell, digit in enumerate(board):
        row, column = divmod(cell, size)
        box = row // height * (size // width) + column // width
        for unit in (("row", row, digit), ("column", column, digit), ("box", box, digit)) if digit else ():
            if unit in seen:
                return f"{digit} twice in {unit[0]} {unit[1] + 1} (characters {seen[unit] + 1} and {cell + 1})"
            seen[unit] = cell
    return ""


def _check_answers(lines: _Lines, puzzles: Puzzles, numbers: list[int], size: int) -> None:
    differs = ((puzzles.questions != puzzles.answers) & (puzzles.questions > 0)).any(axis=1)
    wrong = differs | ~obeys_rules(puzzles.answers, size)
    if not wrong.any():
        return
    at = int(wrong.argmax())
    question, answer = puzzles.questions[at].tolist(), puzzles.answers[at].tolist()
    if conflict := _conflict(question, size):
        raise lines.error(f"givens conflict: {conflict}", numbers[at])
    if differs[at]:
        cell = next(i for i, (q, a) in enumerate(zip(question, answer, strict=True)) if q and q != a)
        is_not = f"character {cell + 1} is {answer[cell]}, given as {question[cell]}"
        raise lines.error(f"the answer does not match the question: {is_not}", numbers[at])
    raise lines.error(f"the answer breaks the rules: {_conflict(answer, size)}", numbers[at])


def obeys_rules(boards: np.ndarray, size: int) -> np.ndarray:
    """Tell which boards, (batch, size*size), hold each digit 1..size once in every row, column and box."""
    height, width = BOX_SHAPE[size]
    obeyed = np.zeros(len(boards), dtype=bool)
    for start in range(0, len(boards), 65536):  # bounds the memory a file of millions takes
        part = boards[start : start + 65536]
        inside = (part >= 1) & (part <= size)
        seen = np.left_shift(1, np.where(inside, part, 0), dtype=np.int16)
        # (batch, band, row in band, stack, column in stack)
        grids = seen.reshape(-1, size // height, height, size // width, width)
        units = [np.bitwise_or.reduce(grids, axis=axes) for axes in ((3, 4), (1, 2), (2, 4))]
        full = [(unit == 2 ** (size + 1) - 2).reshape(len(part), -1).all(axis=1) for unit in units]
        obeyed[start : start + 65536] = full[0] & full[1] & full[2]
    return obeyed
