"""Mazes of a folder of the HRM and TRM builders: a group is a maze, or its turned and mirrored images as stored."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from loopgrad.experiments.tasks.maze_grids import GOAL, PATH, SPACE, START, WALL, image_keys, marks_shortest_path
from loopgrad.experiments.tasks.official_folder import read_folder
from loopgrad.experiments.tasks.official_order import GroupStream, Stored, at_most

_SYMBOLS = 6


@dataclass(frozen=True)
class StoredMazes(Stored):
    """Mazes of a folder."""

    @property
    def size(self) -> int:
        """Rows and columns."""
        return math.isqrt(self.folder.figures.seq_len)

    def train(self, seed: int, step: int, batch_size: int) -> np.ndarray:
        """Return the solved mazes of a step, (batch_size, size, size)."""
        rows = self.stream.rows(seed, step, batch_size)
        return self.folder.train.labels[rows].reshape(batch_size, self.size, self.size)


def read_mazes(path: str, num_train: int, num_test: int, data_seed: int) -> StoredMazes:
    """Read and check a folder; what is a held-out maze turned or mirrored is left out of training.

    The first maze of each group is compared.

    Args:
        path: The folder.
        num_train: Groups to train on at most.
        num_test: Mazes to hold out at most.
        data_seed: Decides which ones.

    Raises:
        ValueError: The folder is malformed, or not of square mazes; names the file.
    """
    folder = read_folder(path)
    figures = folder.figures
    size = math.isqrt(figures.seq_len)
    if size**2 != figures.seq_len or not 2 <= size <= 512:
        raise ValueError(f"{figures.path}: seq_len is {figures.seq_len}, no square of 2 to 512 cells a side")
    for name, value in (("vocab_size", _SYMBOLS), ("num_puzzle_identifiers", 1)):
        if (found := getattr(figures, name)) != value:
            raise ValueError(f"{figures.path}: {name} is {found}, and {value} for mazes")
    folder.check_rows(lambda inputs, labels: _faults(inputs, labels, size))
    test_rows = folder.test.first_rows(at_most(np.arange(folder.test.num_groups), num_test, data_seed))
    firsts = folder.train.puzzle_starts[folder.train.group_starts[:-1]]
    of_train, of_test = (
        image_keys(part.inputs[rows].astype(np.uint8).reshape(-1, size, size))
        for part, rows in ((folder.train, firsts), (folder.test, test_rows))
    )
    held = set(of_test)
    groups = np.flatnonzero([key not in held for key in of_train])
    if not len(groups):
        raise ValueError(f"{folder.train.path}: every maze is one that is held out; none is left to train on")
    return StoredMazes(folder, GroupStream(folder.train, at_most(groups, num_train, data_seed), data_seed), test_rows)


def _faults(inputs: np.ndarray, labels: np.ndarray, size: int) -> Iterator[tuple[str, np.ndarray, str]]:
    counts = [(inputs == token).sum(axis=1) for token in (START, GOAL)]
    known = np.asarray(np.isin(inputs, (WALL, SPACE, START, GOAL)).all(axis=1))
    yield "inputs", ~known, "a cell is no wall, space, start or goal"
    yield "inputs", (counts[0] != 1) | (counts[1] != 1), "a maze has one start and one goal, and this has not"
    changed = ((inputs != labels) & ((inputs != SPACE) | (labels != PATH))).any(axis=1)
    yield "labels", changed, "it differs from its input by more than spaces marked as path: in a wall, start or goal"
    shortest = marks_shortest_path(*(tokens.reshape(-1, size, size) for tokens in (inputs, labels)))
    yield "labels", ~shortest, "what it marks is no shortest path from start to goal"
