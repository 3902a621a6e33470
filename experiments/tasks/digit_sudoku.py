"""Sudoku whose givens are images of handwritten digits, as vectors of a frozen encoder of images."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch

from loopgrad.experiments.tasks.base import IGNORE, Batch, Task, TokenSpec, batch_of
from loopgrad.experiments.tasks.digit_images import BLANK, DigitEncoder, digits
from loopgrad.experiments.tasks.feature_store import features_of
from loopgrad.experiments.tasks.streams import random_stream
from loopgrad.experiments.tasks.sudoku import Sudoku
from loopgrad.models.frozen import FeatureTable, SlotLayout

SIZES = (4, 6, 9)


@dataclass(frozen=True)
class DigitSudoku(Task):
    """Solve a Sudoku of which images of handwritten digits are given.

    A row holds an answer slot for each cell and then each cell: the vector of an image, or that of an empty one. The
    encoder is a small net that is trained here on a third of scikit-learn's digits and frozen; the boards to train on
    have the images of another third, held-out boards those of the last, so that neither the encoder nor the model has
    seen them. Boards are those of `Sudoku`: no held-out board is equivalent to one that is trained on.

    Cost:
        The encoder is trained and all images encoded once, in seconds, and kept; then as `Sudoku`, twice the slots.
    Not recommended when:
        Reading is not of interest: `Sudoku` gives the digits themselves.
    Reference:
        Wang et al. 2019, arXiv 1905.12149 (visual Sudoku).

    Attributes:
        size: 4, 6 or 9.
        num_train: Training boards; None for 1000.
        num_test: Held-out boards; None for 500.
        augment: Whether training boards are transformed by a random symmetry at each step.
        min_givens: Fewest images of a board; None: 5, 10, 24 by size.
        max_givens: Most; None: 8, 16, 32 by size.
        data_seed: Decides the boards, and the images of held-out ones.
        features: Folder of the vectors; None for one in the user's cache.

    Raises:
        ValueError: A hyperparameter is out of range; at first use: scikit-learn is missing (extra [vision]), or the
            folder holds vectors that something else made.

    Example:
        >>> from loopgrad.experiments.tasks import DigitSudoku
        >>> DigitSudoku(size=5)
        Traceback (most recent call last):
        ValueError: DigitSudoku(size=...) must be 4, 6 or 9, got 5
    """

    size: int = 4
    num_train: int | None = None
    num_test: int | None = None
    augment: bool = True
    min_givens: int | None = None
    max_givens: int | None = None
    data_seed: int = 0
    features: str | None = None

    references = ("wang2019satnet",)

    def __post_init__(self) -> None:
        if self.size not in SIZES or isinstance(self.size, bool):
            raise ValueError(f"DigitSudoku(size=...) must be 4, 6 or 9, got {self.size!r}")
        try:
            _ = self._boards
        except ValueError as error:
            raise ValueError(str(error).replace("Sudoku(", "DigitSudoku(")) from None

    def __getstate__(self) -> dict[str, Any]:
        # vectors lie in files, which another process reads itself
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def cells(self) -> int:
        """Cells of a board."""
        return self.size**2

    @cached_property
    def layout(self) -> SlotLayout:
        """What the numbers of tokens mean: the question is the empty cell, statements are images."""
        return SlotLayout(answers=self.size, answer_slots=self.cells)

    @property
    def spec(self) -> TokenSpec:
        """The tokens: digits, signs, the empty cell, and the images by their digit and number."""
        return self._spec

    @cached_property
    def _spec(self) -> TokenSpec:
        names = [f"{digit} [{number}]" for number, digit in enumerate(digits().labels)]
        slots = [f"cell {i + 1}" for i in range(self.cells)]
        return TokenSpec((*map(str, range(1, self.size + 1)), "-", *slots, ".", *names), 2 * self.cells)

    def frozen(self) -> FeatureTable:
        """Return the vectors of the empty cell and of all images."""
        return self._table

    def train_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Return the step's boards of `Sudoku`, with an image drawn for each given."""
        boards = self._boards.train_batch(seed, step, batch_size)
        return self._shown(boards, self._images[0], random_stream(self.data_seed, 5, seed, step))

    def test_set(self) -> Batch:
        """Return the held-out boards, always with the same images."""
        return self._test

    def test_groups(self) -> Mapping[str, torch.Tensor]:
        """Return the rows of the held-out boards by how many cells are empty."""
        empty = (self._test.inputs == self.layout.first_question).sum(1)
        return {f"{count} empty": torch.nonzero(empty == count).flatten() for count in empty.unique().tolist()}

    def is_solved(self, inputs: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
        """Judge whether the answer slots hold a grid that keeps the digits of the images and obeys the rules."""
        self.check_tokens(inputs, predictions)
        answers = predictions[:, : self.cells]
        known = (answers >= 0) & (answers < self.size)
        boards = torch.where(known, answers + 2, 0)  # 0 obeys no rule
        return self._boards.is_solved(self._digits_of(inputs), boards)

    def render(self, inputs: torch.Tensor, answer: torch.Tensor) -> str:
        """Show the digits of the images beside the answer."""
        self.symbols_of(inputs)  # which refuses what is no sample
        own = answer[: self.cells]
        solved = torch.where((own >= 0) & (own < self.size), own + 2, IGNORE)
        return self._boards.render(self._digits_of(inputs.unsqueeze(0))[0], solved)

    def _digits_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the board, in the tokens of `Sudoku`, of rows of slots."""
        number = inputs[:, self.cells :] - self.layout.first_statement
        labels = torch.from_numpy(digits().labels).to(inputs.device)
        return torch.where(number < 0, 1, labels[number.clamp(min=0, max=len(labels) - 1)] + 1)

    def _shown(self, boards: Batch, images: list[np.ndarray], rng: np.random.Generator) -> Batch:
        """Return boards as rows of slots, with an image drawn for each given."""
        layout, given = self.layout, boards.inputs.numpy() - 1  # 0 is empty
        drawn = np.zeros(given.shape, dtype=np.int64)
        for digit in range(1, self.size + 1):
            places = given == digit
            drawn[places] = rng.choice(images[digit], size=int(places.sum()))
        shown = np.where(given == 0, layout.first_question, layout.first_statement + drawn)
        slots = np.broadcast_to(layout.first_slot + np.arange(self.cells), given.shape)
        labels = np.full((len(given), 2 * self.cells), IGNORE, dtype=np.int64)
        labels[:, : self.cells] = boards.labels.numpy() - 2
        return batch_of(np.concatenate([slots, shown], axis=1), labels)

    @cached_property
    def _boards(self) -> Sudoku:
        return Sudoku(
            self.size,
            self.min_givens,
            self.max_givens,
            self.num_train,
            self.num_test,
            self.augment,
            data_seed=self.data_seed,
        )

    @cached_property
    def _test(self) -> Batch:
        return self._shown(self._boards.test_set(), self._images[1], random_stream(self.data_seed, 6))

    @cached_property
    def _images(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Numbers of the images of each digit, on boards to train on and on held-out ones."""
        data = digits()
        parts = [[part[data.labels[part] == digit] for digit in range(10)] for part in data.parts[1:]]
        return parts[0], parts[1]

    @cached_property
    def _table(self) -> FeatureTable:
        encoder = DigitEncoder()
        names = [BLANK, *map(str, range(len(digits().labels)))]
        found = features_of(names, "sentence", encoder, self.features)
        return FeatureTable(torch.from_numpy(found.rows), self.layout, encoder.num_parameters)
