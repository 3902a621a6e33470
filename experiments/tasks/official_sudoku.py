"""Sudokus of a folder of the HRM and TRM builders: a group is a board and the transforms of it that were stored."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from loopgrad.experiments.tasks.files import obeys_rules
from loopgrad.experiments.tasks.official_folder import read_folder
from loopgrad.experiments.tasks.official_order import GroupStream, Stored, at_most
from loopgrad.experiments.tasks.symmetry import class_keys


@dataclass(frozen=True)
class StoredSudokus(Stored):
    """Boards of a folder."""

    def train(self, seed: int, step: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return questions and answers of a step, (batch_size, size*size) each, 0 for a blank."""
        rows, part = self.stream.rows(seed, step, batch_size), self.folder.train
        return part.inputs[rows].astype(np.int64) - 1, part.labels[rows].astype(np.int64) - 1


def read_sudokus(path: str, size: int, num_train: int | None, num_test: int | None, data_seed: int) -> StoredSudokus:
    """Read and check a folder; what is equivalent to a held-out board is left out of training.

    Equivalence is that of the first board of each group.

    Args:
        path: The folder.
        size: 4, 6 or 9.
        num_train: Groups to train on at most; None: all.
        num_test: Boards to hold out at most; None: all.
        data_seed: Decides which ones.

    Raises:
        ValueError: The folder is malformed or not of this size; names the file.
    """
    folder = read_folder(path)
    figures = folder.figures
    wanted = {"seq_len": size**2, "vocab_size": size + 2, "num_puzzle_identifiers": 1}
    for name, value in wanted.items():
        if (found := getattr(figures, name)) != value:
            hint = f": set size={side}" if name == "seq_len" and (side := _side(found)) else ""
            raise ValueError(f"{figures.path}: {name} is {found}, and {value} for Sudokus of size {size}{hint}")
    folder.check_rows(lambda inputs, labels: _faults(inputs, labels, size))
    test = at_most(np.arange(folder.test.num_groups), num_test, data_seed)
    test_rows = folder.test.first_rows(test)
    held = _keys(folder.test.inputs[test_rows], size)
    firsts = folder.train.puzzle_starts[folder.train.group_starts[:-1]]
    groups = np.flatnonzero(~np.isin(_keys(folder.train.inputs[firsts], size), held))
    if not len(groups):
        raise ValueError(f"{folder.train.path}: every board is equivalent to a held-out one; none is left to train on")
    return StoredSudokus(folder, GroupStream(folder.train, at_most(groups, num_train, data_seed), data_seed), test_rows)


def _side(seq_len: int) -> int:
    return {16: 4, 36: 6, 81: 9}.get(seq_len, 0)


def _keys(tokens: np.ndarray, size: int) -> np.ndarray:
    return class_keys(tokens.astype(np.int8) - 1, size)


def _faults(inputs: np.ndarray, labels: np.ndarray, size: int) -> Iterator[tuple[str, np.ndarray, str]]:
    padded = (inputs == 0).any(axis=1)
    yield "inputs", padded, "a cell is padding, and each must be blank (1) or a digit (its token is one more)"
    yield "labels", ~obeys_rules(labels.astype(np.int16) - 1, size), "the answer breaks the rules"
    yield "labels", ((inputs != labels) & (inputs > 1)).any(axis=1), "the answer does not keep a given of its input"
