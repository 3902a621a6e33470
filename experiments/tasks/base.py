"""What a task offers: tokens, a training stream that is a pure function of (seed, step), a test set, a checker."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from loopgrad.gradients.checks import is_int
from loopgrad.models.frozen import FeatureTable

IGNORE = -100
"""The label of a position that is not scored."""


@dataclass(frozen=True)
class Batch:
    """A batch of samples.

    Attributes:
        inputs: Tokens, (batch, seq_len) int64.
        labels: Tokens of the answer, (batch, seq_len) int64; IGNORE where not scored.
        puzzle_ids: Identity of each sample's puzzle, (batch,) int64; zeros where the task has none.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    puzzle_ids: torch.Tensor

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def __getitem__(self, rows: slice | torch.Tensor) -> "Batch":
        return Batch(self.inputs[rows], self.labels[rows], self.puzzle_ids[rows])

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on another device."""
        return Batch(self.inputs.to(device), self.labels.to(device), self.puzzle_ids.to(device))


@dataclass(frozen=True)
class TokenSpec:
    """The tokens a model reads and writes.

    Attributes:
        symbols: What each token stands for, in the order of the tokens.
        seq_len: Tokens of a sample.
        num_puzzles: Number of puzzle identities; 0 where the task has none.
    """

    symbols: tuple[str, ...]
    seq_len: int
    num_puzzles: int = 0

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.symbols)


class Task(ABC):
    """A source of samples with an exact checker; a frozen dataclass of hyperparameters, its data made on first use.

    Attributes:
        asks_ahead: Whether labels are later inputs, such as the next character, so that a model must not look ahead.
    """

    references: ClassVar[tuple[str, ...]] = ()
    asks_ahead: ClassVar[bool] = False

    @property
    @abstractmethod
    def spec(self) -> TokenSpec:
        """The tokens of the task."""

    @abstractmethod
    def train_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Return the batch of one training step: a pure function of its arguments and the task's hyperparameters."""

    @abstractmethod
    def test_set(self) -> Batch:
        """Return the whole held-out set, always the same."""

    def test_groups(self) -> Mapping[str, torch.Tensor]:
        """Return rows of the held-out set by group, such as the number of hops; nothing where there are no groups."""
        return {}

    def frozen(self) -> FeatureTable | None:
        """Return what a frozen encoder makes of the tokens; None where models learn vectors themselves."""
        return None

    @abstractmethod
    def is_solved(self, inputs: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
        """Judge predicted tokens, (batch, seq_len) each, by the rules of the task; return booleans, (batch,)."""

    @abstractmethod
    def render(self, inputs: torch.Tensor, answer: torch.Tensor) -> str:
        """Show one sample, (seq_len,) each, as text: what is asked beside the answer."""

    def identities(self) -> "Task":
        """Return a task that is equal for all tasks with the same puzzles under the same identities."""
        return self

    def check_int(self, name: str, minimum: int, maximum: int | None = None, optional: bool = False) -> None:
        """Check a hyperparameter; one that is optional may be None.

        Raises:
            ValueError: It is not an int, or outside minimum..maximum.
        """
        value, owner = getattr(self, name), type(self).__name__
        if optional and value is None:
            return
        limits = f"at least {minimum}" if maximum is None else f"in {minimum}..{maximum}"
        if not is_int(value):
            raise ValueError(f"{owner}({name}=...) must be an int {limits}, got {value!r}")
        if value < minimum or (maximum is not None and value > maximum):
            raise ValueError(f"{owner}({name}=...) must be {limits}, got {value}")

    def check_flag(self, name: str) -> None:
        """Check a hyperparameter that is True or False.

        Raises:
            ValueError: It is not a bool.
        """
        if not isinstance(value := getattr(self, name), bool):
            raise ValueError(f"{type(self).__name__}({name}=...) must be True or False, got {value!r}")

    def check_tokens(self, inputs: torch.Tensor, predictions: torch.Tensor) -> None:
        """Check what `is_solved` is given.

        Raises:
            ValueError: The two are not (batch, seq_len) alike, or not integer tokens.
        """
        for name, tokens in (("inputs", inputs), ("predictions", predictions)):
            if tokens.dim() != 2 or tokens.shape[1] != self.spec.seq_len:
                raise ValueError(f"{name} must be (batch, {self.spec.seq_len}), got {tuple(tokens.shape)}")
            if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
                raise ValueError(f"{name} must be integer tokens, got {tokens.dtype}: take argmax(-1) of logits first")
        if inputs.shape != predictions.shape:
            raise ValueError(f"predictions must be {tuple(inputs.shape)} as inputs, got {tuple(predictions.shape)}")

    def symbols_of(self, tokens: torch.Tensor, unscored: str = "?") -> list[str]:
        """Return one sample's tokens as symbols; `unscored` for anything that is not a token, such as IGNORE.

        Raises:
            ValueError: `tokens` is not one sample.
        """
        if tuple(tokens.shape) != (self.spec.seq_len,):
            raise ValueError(f"render takes one sample of shape ({self.spec.seq_len},), got {tuple(tokens.shape)}")
        symbols = self.spec.symbols
        return [symbols[token] if 0 <= token < len(symbols) else unscored for token in tokens.tolist()]


def batch_of(inputs: np.ndarray, labels: np.ndarray, puzzle_ids: np.ndarray | None = None) -> Batch:
    """Make a batch of arrays, (batch, seq_len) and (batch,); no puzzle_ids means zeros."""
    if puzzle_ids is None:
        puzzle_ids = np.zeros(len(inputs))
    # asarray may share memory with the task's cached data; a batch must be free to be changed
    return Batch(*(torch.from_numpy(np.array(array, dtype=np.int64)) for array in (inputs, labels, puzzle_ids)))


def beside(left: list[str], right: list[str], gap: str = "   ") -> str:
    """Set two blocks of lines side by side."""
    height, width = max(len(left), len(right)), max(map(len, left), default=0)
    left, right = left + [""] * (height - len(left)), right + [""] * (height - len(right))
    return "\n".join(f"{a:<{width}}{gap}{b}".rstrip() for a, b in zip(left, right, strict=True))
