"""Reads a folder of puzzles as the dataset builders of HRM and TRM write it; refuses by file name and reason.

train/ and test/ hold inputs and labels, a row of tokens per example; which examples are of one puzzle; which puzzles
are of one group, a puzzle and its augmentations; and the identity of each puzzle.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from loopgrad.experiments.tasks.base import IGNORE, Batch
from loopgrad.experiments.tasks.npy_files import StoredArray, stored_array
from loopgrad.experiments.tasks.official_figures import LARGEST, Figures, check_names, read_figures

MOST_BYTES = 2**34  # of inputs, and of labels: those of ARC-AGI-2 with 1000 augmentations have 4 GB
_AT_ONCE = 2**22  # tokens that are checked at once

Faults = Callable[[np.ndarray, np.ndarray], Iterator[tuple[str, np.ndarray, str]]]
"""Given inputs and labels, (rows, seq_len): yields "inputs" or "labels", which rows are at fault, (rows,), and why."""


@dataclass(frozen=True)
class Part:
    """The rows of train/ or test/; tokens stay in their files.

    Attributes:
        path: The folder.
        figures: What dataset.json says.
        inputs: Tokens, (rows, seq_len).
        labels: Tokens, (rows, seq_len); 0 where not scored.
        puzzle_ids: Identity of each puzzle, (puzzles,) int64.
        puzzle_starts: First row of each puzzle, and the number of rows, (puzzles + 1,) int64.
        group_starts: First puzzle of each group, and the number of puzzles, (groups + 1,) int64.
    """

    path: Path
    figures: Figures
    inputs: StoredArray
    labels: StoredArray
    puzzle_ids: np.ndarray
    puzzle_starts: np.ndarray
    group_starts: np.ndarray

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return len(self.group_starts) - 1

    @cached_property
    def examples(self) -> np.ndarray:
        """Examples of each puzzle of a group, (groups,): all puzzles of one have as many."""
        return np.diff(self.puzzle_starts)[self.group_starts[:-1]]

    def first_rows(self, groups: np.ndarray) -> np.ndarray:
        """Return the rows of the first puzzle of each group, which the builders leave as it is."""
        counts = self.examples[groups]
        within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        return np.repeat(self.puzzle_starts[self.group_starts[groups]], counts) + within

    def batch(self, rows: np.ndarray) -> Batch:
        """Return some rows as a batch, with the identities of their puzzles."""
        inputs, labels = (stored[rows].astype(np.int64) for stored in (self.inputs, self.labels))
        labels[labels == 0] = IGNORE
        puzzles = np.searchsorted(self.puzzle_starts, rows, side="right") - 1
        return Batch(*map(torch.from_numpy, (inputs, labels, self.puzzle_ids[puzzles])))


@dataclass(frozen=True)
class Folder:
    """Both parts of a folder, of one vocabulary and one set of identities.

    Attributes:
        path: The folder.
        train: Rows to train on.
        test: Rows that are held out.
    """

    path: Path
    train: Part
    test: Part

    @property
    def figures(self) -> Figures:
        """What holds for both parts."""
        return self.train.figures

    def check_rows(self, faults: Faults) -> None:
        """Read all tokens once, some at a time, and check them.

        Raises:
            ValueError: A token is none of the vocabulary, or a row is at fault; names file and row, counted from 0.
        """
        most = self.figures.vocab_size - 1
        for part in (self.train, self.test):
            step = max(1, _AT_ONCE // self.figures.seq_len)
            for start in range(0, len(part.inputs), step):
                tokens = {name: getattr(part, name)[start : start + step] for name in ("inputs", "labels")}
                for name, found in tokens.items():
                    if found.min() < 0 or found.max() > most:
                        wrong = ((found < 0) | (found > most)).any(axis=1)
                        _refuse(part, name, start, wrong, f"a token is none of 0 to {most}, by vocab_size")
                for name, wrong, reason in faults(tokens["inputs"], tokens["labels"]):
                    _refuse(part, name, start, wrong, reason)


def _refuse(part: Part, name: str, start: int, wrong: np.ndarray, reason: str) -> None:
    if wrong.any():
        raise ValueError(f"{_file(part.path, name)}, row {start + int(wrong.argmax())}: {reason}")


def read_folder(path: str | Path) -> Folder:
    """Read figures, indices and headers of a folder; its tokens are left to `Folder.check_rows`.

    Args:
        path: A folder of one set, "all", as the builders of Sudoku-Extreme, Maze-Hard and ARC write it.

    Raises:
        ValueError: Something is missing, malformed, too large, or contradicts something else; the message begins with
            the path of the file.
    """
    path = Path(path)
    train, test = _part(path / "train"), _part(path / "test")
    for name in ("vocab_size", "seq_len", "num_puzzle_identifiers"):
        one, other = getattr(test.figures, name), getattr(train.figures, name)
        if one != other:
            raise ValueError(f"{test.figures.path}: {name} is {one}, and {other} in that of train")
    check_names(path / "identifiers.json", train.figures.num_puzzle_identifiers)
    return Folder(path, train, test)


def _part(path: Path) -> Part:
    figures = read_figures(path / "dataset.json")
    inputs, labels = (stored_array(_file(path, name), 2, MOST_BYTES) for name in ("inputs", "labels"))
    rows, seq_len = inputs.shape
    if rows > LARGEST:
        raise ValueError(f"{inputs.path}: {rows} rows, and at most {LARGEST} are read")
    if labels.shape != inputs.shape:
        sizes = " and ".join(f"{it.shape[0]} rows of {it.shape[1]}" for it in (labels, inputs))
        raise ValueError(f"{labels.path}: labels must be as many as inputs, and the two are {sizes} tokens")
    if figures.seq_len != seq_len:
        raise ValueError(f"{figures.path}: seq_len is {figures.seq_len}, and rows of {inputs.path.name} have {seq_len}")
    puzzle_starts = _starts(path, "puzzle_indices", rows, f"rows of {inputs.path.name}", "puzzle")
    puzzles = len(puzzle_starts) - 1
    puzzle_ids = _whole(path, "puzzle_identifiers", puzzles, "puzzles by all__puzzle_indices.npy")
    least, most = puzzle_ids.min(), puzzle_ids.max()
    if len(puzzle_ids) != puzzles or least < 0 or most >= figures.num_puzzle_identifiers:
        raise ValueError(
            f"{_file(path, 'puzzle_identifiers')}: {len(puzzle_ids)} identities of {least} to {most}, and there are "
            f"{puzzles} puzzles, whose identities are below {figures.num_puzzle_identifiers}"
        )
    group_starts = _starts(path, "group_indices", puzzles, "puzzles by all__puzzle_indices.npy", "group")
    _check_groups(_file(path, "puzzle_indices"), puzzle_starts, group_starts)
    groups = len(group_starts) - 1
    found: list[tuple[str, set[float]]] = [("total_groups", {groups}), ("mean_puzzle_examples", {rows / puzzles})]
    if figures.total_puzzles is not None:
        found.append(("total_puzzles", {puzzles, groups}))  # the builders of Sudokus and mazes say groups
    for name, values in found:
        told = getattr(figures, name)
        if not any(math.isclose(told, value, rel_tol=1e-6) for value in values):
            raise ValueError(f"{figures.path}: {name} is {told}, and by the arrays it is {max(values):g}")
    return Part(path, figures, inputs, labels, puzzle_ids.astype(np.int64), puzzle_starts, group_starts)


def _check_groups(path: Path, puzzle_starts: np.ndarray, group_starts: np.ndarray) -> None:
    counts = np.diff(puzzle_starts)
    uneven = np.flatnonzero(np.repeat(counts[group_starts[:-1]], np.diff(group_starts)) != counts)
    if len(uneven):
        group = int(np.searchsorted(group_starts, uneven[0], side="right")) - 1
        one, other = counts[group_starts[group]], counts[uneven[0]]
        raise ValueError(
            f"{path}: puzzles of group {group} have {one} and {other} examples, and those of a group are augmentations "
            "of one puzzle, with as many each"
        )


def _file(path: Path, name: str) -> Path:
    return path / f"all__{name}.npy"


def _whole(path: Path, name: str, most: int, of: str) -> np.ndarray:
    """Return an array of indices whole, which has one number more than there are things at most."""
    stored = stored_array(_file(path, name), 1, 8 * (LARGEST + 1) + 2**12)
    if len(stored) > most + 1:
        raise ValueError(f"{stored.path}: {len(stored)} numbers, too many for {most} {of}")
    return np.array(stored[:])


def _starts(path: Path, name: str, end: int, of: str, what: str) -> np.ndarray:
    """Return an array of indices that go up from 0 to an end."""
    found, place = _whole(path, name, end, of), _file(path, name)
    if found[0] != 0 or found[-1] != end:
        raise ValueError(f"{place}: it must go from 0 to {end}, the {of}, and goes from {found[0]} to {found[-1]}")
    down = np.flatnonzero(found[1:] <= found[:-1])
    if len(down):
        one, other = found[down[0]], found[down[0] + 1]
        raise ValueError(f"{place}: {what} {down[0]} would go from {one} to {other}: it must go up at each place")
    return found.astype(np.int64)
