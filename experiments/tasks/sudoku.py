"""Sudoku 4x4, 6x6 and 9x9, generated or read from a file; no test board is equivalent to a training board."""

import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from loopgrad.experiments.tasks.base import Batch, Task, TokenSpec, batch_of, beside
from loopgrad.experiments.tasks.files import Puzzles, obeys_rules
from loopgrad.experiments.tasks.official_sudoku import StoredSudokus, read_sudokus
from loopgrad.experiments.tasks.puzzle_cache import cached_puzzles
from loopgrad.experiments.tasks.streams import epoch_rows, random_stream, split_by_class, step_stream
from loopgrad.experiments.tasks.sudoku_generator import DEFAULT_GIVENS, FEWEST_GIVENS, Puzzle, puzzle_stream
from loopgrad.experiments.tasks.sudoku_solver import BOX_SHAPE, solve
from loopgrad.experiments.tasks.symmetry import class_keys, random_symmetries


@dataclass(frozen=True)
class Sudoku(Task):
    """Fill the grid so that each row, column and box holds every digit once.

    Tokens as in the published sets: 0 pad (unused), 1 blank, digit d is d + 1; every cell is scored, givens too.
    Training boards are transformed anew at each step by a random symmetry (see `symmetry`). An equivalence class
    of boards under all symmetries is wholly in training or wholly in the test. Puzzles are made or read at first use.

    Cost:
        Generating 1500 puzzles takes about 0.5 s (4x4), 2 s (6x6), 20 s (9x9). Checking a folder takes about 3 s per
        million boards, and finding the class of each held-out one 20 microseconds.
    Not recommended when:
        You want to compare with published Sudoku-Extreme numbers; read its files with `path` and
        `test_path` then, or the folder that the official builder made of them: generated puzzles are much easier.

    Attributes:
        size: 4, 6 or 9; boxes are 2x2, 2x3, 3x3.
        min_givens: Fewest givens of a generated puzzle; None: 5, 10, 24 by size. Not with `path`.
        max_givens: Most givens; None: 8, 16, 32 by size. Not with `path`.
        num_train: Training puzzles; None: 1000 generated, or all that a file has left. Of a folder at most so many
            groups.
        num_test: Test puzzles; None: 500 generated, or a fifth of a file, at most 500, or all of `test_path`. Of a
            folder at most so many; None: all.
        augment: Whether training boards are transformed, those of a folder beside the transforms that are stored there.
        path: File of puzzles, see `files.read_puzzles`; or folder that an official builder wrote, see
            `official_folder.read_folder`: an epoch then has of each group, a board and its stored transforms, a random
            one, which with augment=False is as published. None generates.
        test_path: File of test puzzles; training puzzles equivalent to one of them are left out. None holds some of
            `path` out, one puzzle of each held-out class.
        data_seed: Decides the puzzles, or which of a file are held out.
        shared_puzzle: Whether all have one identity, which gives models puzzle tokens, as in the published code.

    Raises:
        ValueError: A hyperparameter is out of range; at first use: a file is malformed or holds too few puzzles, or so
            many different puzzles with such givens do not exist.

    Reference:
        Jolicoeur-Martineau 2025, arXiv 2510.04871 (the layout).

    Example:
        >>> from loopgrad.experiments.tasks import Sudoku
        >>> task = Sudoku(size=4, num_train=8, num_test=2)
        >>> batch = task.train_batch(seed=0, step=0, batch_size=3)
        >>> task.is_solved(batch.inputs, batch.labels).tolist()
        [True, True, True]
    """

    size: int = 4
    min_givens: int | None = None
    max_givens: int | None = None
    num_train: int | None = None
    num_test: int | None = None
    augment: bool = True
    path: str | None = None
    test_path: str | None = None
    data_seed: int = 0
    shared_puzzle: bool = False

    references = ("jolicoeurmartineau2025less",)

    def __post_init__(self) -> None:
        if self.size not in BOX_SHAPE or isinstance(self.size, bool):
            raise ValueError(f"Sudoku(size=...) must be 4, 6 or 9, got {self.size!r}")
        self.check_int("num_train", 1, optional=True)
        self.check_int("num_test", 1, optional=True)
        self.check_flag("augment")
        self.check_flag("shared_puzzle")
        self.check_int("data_seed", 0)
        if self.test_path is not None and self.path is None:
            raise ValueError("Sudoku(test_path=...) goes with path=..., the file of training puzzles")
        for name in ("min_givens", "max_givens"):
            if getattr(self, name) is not None and self.path is not None:
                raise ValueError(f"Sudoku({name}=...) is for generated puzzles: leave it out with path=...")
            self.check_int(name, FEWEST_GIVENS[self.size], self.size**2, optional=True)
        fewest, most = self._givens
        if fewest > most:
            raise ValueError(f"Sudoku(min_givens=...) must be at most max_givens = {most}, got {fewest}")

    @property
    def spec(self) -> TokenSpec:
        """Pad, blank and the digits."""
        return TokenSpec(("pad", ".", *map(str, range(1, self.size + 1))), self.size**2, int(self.shared_puzzle))

    @property
    def ratings(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Difficulty of each training and each test puzzle, int64: guesses of our solver, or what the CSV states.

        Raises:
            ValueError: They are those of a folder, which states none.
        """
        if self._stored is not None:
            raise ValueError(f"Sudoku.ratings: {self.path} is a folder, and states no ratings: read the CSV files")
        train, test = self._puzzles
        return torch.from_numpy(train.ratings.copy()), torch.from_numpy(test.ratings.copy())

    def train_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Return the step's share of the epoch's puzzles, each under a fresh symmetry."""
        rng = step_stream(self.data_seed, seed, step, batch_size)
        if self._stored is not None:
            questions, answers = self._stored.train(seed, step, batch_size)
        else:
            train = self._puzzles[0]
            rows = epoch_rows(len(train), seed, step, batch_size)
            questions, answers = train.questions[rows].astype(np.int64), train.answers[rows].astype(np.int64)
        if self.augment:
            symmetries = random_symmetries(self.size, batch_size, rng)
            questions, answers = symmetries.apply(questions), symmetries.apply(answers)
        return batch_of(questions + 1, answers + 1)

    def test_set(self) -> Batch:
        """Return the held-out puzzles, untransformed."""
        if self._stored is not None:
            return self._stored.test_set()
        test = self._puzzles[1]
        return batch_of(test.questions + 1, test.answers + 1)

    def is_solved(self, inputs: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
        """Judge whether the grid keeps the givens and obeys the rules."""
        self.check_tokens(inputs, predictions)
        kept = ((inputs == predictions) | (inputs <= 1)).all(dim=1)
        obeyed = obeys_rules(predictions.cpu().numpy() - 1, self.size)
        return kept & torch.from_numpy(obeyed).to(kept.device)

    def render(self, inputs: torch.Tensor, answer: torch.Tensor) -> str:
        """Show puzzle and answer side by side, boxes set apart."""
        return beside(self._lines(inputs), self._lines(answer))

    def _lines(self, tokens: torch.Tensor) -> list[str]:
        symbols = self.symbols_of(tokens)
        height, width = BOX_SHAPE[self.size]
        lines = []
        for row in range(self.size):
            if row and row % height == 0:
                lines.append("-+-".join(["-" * (2 * width - 1)] * (self.size // width)))
            cells = symbols[row * self.size : (row + 1) * self.size]
            boxes = [" ".join(cells[i : i + width]) for i in range(0, self.size, width)]
            lines.append(" | ".join(boxes))
        return lines

    @property
    def _givens(self) -> tuple[int, int]:
        fewest, most = DEFAULT_GIVENS[self.size]
        if self.min_givens is not None:
            return self.min_givens, max(most, self.min_givens) if self.max_givens is None else self.max_givens
        most = most if self.max_givens is None else self.max_givens
        return min(fewest, most), most

    @cached_property
    def _stored(self) -> StoredSudokus | None:
        """What `path` holds if it is a folder; None if it is a file or there is none."""
        if self.path is None or not os.path.isdir(self.path):
            return None
        if self.test_path is not None:
            raise ValueError(f"Sudoku(test_path=...): path={self.path} is a folder with a test/ in it: leave it out")
        return read_sudokus(self.path, self.size, self.num_train, self.num_test, self.data_seed)

    @cached_property
    def _puzzles(self) -> tuple[Puzzles, Puzzles]:
        if self.path is None:
            return self._generated()
        if self.test_path is None:
            return self._held_out(self.path)
        return self._apart(self.path, self.test_path)

    def _generated(self) -> tuple[Puzzles, Puzzles]:
        rng = random_stream(self.data_seed, 0)
        num_train = 1000 if self.num_train is None else self.num_train
        num_test = 500 if self.num_test is None else self.num_test
        fewest, most = self._givens
        stream = puzzle_stream(self.size, fewest, most, rng)
        what, remedy = f"puzzles of size {self.size} with {fewest}-{most} givens", "widen the range of givens"
        train, test = split_by_class(stream, num_train, num_test, rng, "Sudoku", what, remedy)
        return self._rated(train), self._rated(test)

    def _rated(self, puzzles: list[Puzzle]) -> Puzzles:
        return Puzzles(
            np.array([puzzle.question for puzzle in puzzles], dtype=np.int8),
            np.array([puzzle.answer for puzzle in puzzles], dtype=np.int8),
            np.array([solve(puzzle.question, self.size).guesses for puzzle in puzzles], dtype=np.int64),
        )

    def _held_out(self, path: str) -> tuple[Puzzles, Puzzles]:
        puzzles = cached_puzzles(path, self.size)
        _, first, of_class = np.unique(class_keys(puzzles.questions, self.size), return_index=True, return_inverse=True)
        num_test = min(500, max(1, len(first) // 5)) if self.num_test is None else self.num_test
        if num_test >= len(first):
            raise ValueError(
                f"{path}: {len(puzzles)} puzzles of {len(first)} equivalence classes cannot give num_test={num_test} "
                "held-out classes and leave one to train on: lower num_test, or name a test_path"
            )
        held = random_stream(self.data_seed, 0).permutation(len(first))[:num_test]
        rest = np.flatnonzero(~np.isin(of_class.reshape(-1), held))
        return puzzles[self._chosen(path, rest, self.num_train, "num_train")], puzzles[np.sort(first[held])]

    def _apart(self, path: str, test_path: str) -> tuple[Puzzles, Puzzles]:
        puzzles, test = cached_puzzles(path, self.size), cached_puzzles(test_path, self.size)
        test = test[self._chosen(test_path, np.arange(len(test)), self.num_test, "num_test")]
        leaks = np.isin(class_keys(puzzles.questions, self.size), class_keys(test.questions, self.size))
        rest = np.flatnonzero(~leaks)
        if not len(rest):
            raise ValueError(f"{path}: every puzzle is equivalent to one of {test_path}; none is left to train on")
        return puzzles[self._chosen(path, rest, self.num_train, "num_train")], test

    def _chosen(self, path: str, rows: np.ndarray, number: int | None, name: str) -> np.ndarray:
        if number is None:
            return rows
        if number > len(rows):
            raise ValueError(f"{path}: {len(rows)} puzzles are left where {name}={number} are wanted: lower {name}")
        return np.sort(random_stream(self.data_seed, 3, len(rows)).choice(rows, number, replace=False))
