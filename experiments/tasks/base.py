"""What a task offers: tokens, a training stream that is a pure function of (seed, step), a test set, a checker."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

IGNORE = -100
"""The label of a position that is not scored."""

_Item = TypeVar("_Item")


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
    """A source of samples with an exact checker; a frozen dataclass of hyperparameters, its data made on first use."""

    references: ClassVar[tuple[str, ...]] = ()

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

    @abstractmethod
    def is_solved(self, inputs: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
        """Judge predicted tokens, (batch, seq_len) each, by the rules of the task; return booleans, (batch,)."""

    @abstractmethod
    def render(self, inputs: torch.Tensor, answer: torch.Tensor) -> str:
        """Show one sample, (seq_len,) each, as text: what is asked beside the answer."""


def batch_of(inputs: np.ndarray, labels: np.ndarray, puzzle_ids: np.ndarray | None = None) -> Batch:
    """Make a batch of arrays, (batch, seq_len) and (batch,); no puzzle_ids means zeros."""
    if puzzle_ids is None:
        puzzle_ids = np.zeros(len(inputs))
    # asarray may share memory with the task's cached data; a batch must be free to be changed
    return Batch(*(torch.from_numpy(np.array(array, dtype=np.int64)) for array in (inputs, labels, puzzle_ids)))


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """Return the generator of (seed, key); different keys give independent streams.

    Raises:
        ValueError: `seed` or a number of `key` is negative.
    """
    if seed < 0 or min(key, default=0) < 0:
        raise ValueError(f"seed and step must be at least 0, got {seed} and {key}")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def step_stream(data_seed: int, seed: int, step: int, batch_size: int) -> np.random.Generator:
    """Return the generator of one training step, independent of the streams that made the data.

    Raises:
        ValueError: `seed` or `step` is negative, or `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return random_stream(data_seed, 1, seed, step)


def epoch_rows(num_samples: int, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Return which of `num_samples` samples the step's batch holds.

    The stream is one random permutation of all samples after another, cut into batches: every sample is seen once
    per epoch, and a batch may straddle two epochs.
    """
    first = step * batch_size
    rows = np.arange(first, first + batch_size)
    epochs = rows // num_samples
    return np.concatenate(
        [
            _permutation(num_samples, seed, int(epoch))[rows[epochs == epoch] % num_samples]
            for epoch in np.unique(epochs)
        ]
    )


@lru_cache(maxsize=4)
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    return random_stream(seed, 2, epoch).permutation(num_samples)


def split_by_class(
    items: Iterator[tuple[_Item, Hashable, Hashable]],
    num_train: int,
    num_test: int,
    rng: np.random.Generator,
    patience: int,
    refusal: Callable[[int, int], str],
) -> tuple[list[_Item], list[_Item]]:
    """Fill a training and a test set from a stream so that no equivalence class is in both and no item comes twice.

    The first item of a class decides at random which set the class belongs to, with the odds of the places left, so
    both sets follow the stream's distribution.

    Args:
        items: Yields (item, identity, equivalence class).
        num_train: Items wanted for training.
        num_test: Items wanted for the test.
        rng: Decides the side of each class.
        patience: Items in a row that may be of no use before this gives up.
        refusal: Called with the numbers found so far; returns the message of the error.

    Raises:
        ValueError: `patience` items in a row were repetitions, or of classes whose set is full already.
    """
    sets: tuple[list[_Item], list[_Item]] = ([], [])
    wanted = (num_train, num_test)
    side_of: dict[Hashable, int] = {}
    seen: set[Hashable] = set()
    idle = 0
    while any(len(chosen) < number for chosen, number in zip(sets, wanted, strict=True)):
        if idle >= patience:
            raise ValueError(refusal(len(sets[0]), len(sets[1])))
        idle += 1
        item, identity, equivalence = next(items)
        if equivalence not in side_of:
            left = [number - len(chosen) for chosen, number in zip(sets, wanted, strict=True)]
            side_of[equivalence] = int(rng.random() * sum(left) >= left[0])
        side = side_of[equivalence]
        if identity in seen or len(sets[side]) >= wanted[side]:
            continue
        seen.add(identity)
        sets[side].append(item)
        idle = 0
    return sets


def check_int(owner: str, name: str, value: Any, minimum: int, maximum: int | None = None) -> None:
    """Check a hyperparameter.

    Raises:
        ValueError: `value` is not an int, or outside minimum..maximum.
    """
    limits = f"at least {minimum}" if maximum is None else f"in {minimum}..{maximum}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{owner}({name}=...) must be an int {limits}, got {value!r}")
    if value < minimum or (maximum is not None and value > maximum):
        raise ValueError(f"{owner}({name}=...) must be {limits}, got {value}")


def check_flag(owner: str, name: str, value: Any) -> None:
    """Check a hyperparameter that is True or False.

    Raises:
        ValueError: `value` is not a bool.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{owner}({name}=...) must be True or False, got {value!r}")


def check_tokens(spec: TokenSpec, inputs: torch.Tensor, predictions: torch.Tensor) -> None:
    """Check what `is_solved` is given.

    Raises:
        ValueError: The two are not (batch, seq_len) alike, or not integer tokens.
    """
    for name, tokens in (("inputs", inputs), ("predictions", predictions)):
        if tokens.dim() != 2 or tokens.shape[1] != spec.seq_len:
            raise ValueError(f"{name} must be (batch, {spec.seq_len}), got {tuple(tokens.shape)}")
        if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise ValueError(f"{name} must be integer tokens, got {tokens.dtype}: take argmax(-1) of logits first")
    if inputs.shape != predictions.shape:
        raise ValueError(f"predictions must be {tuple(inputs.shape)} as inputs, got {tuple(predictions.shape)}")


def symbols_of(spec: TokenSpec, tokens: torch.Tensor, unscored: str = "?") -> list[str]:
    """Return one sample's tokens, (seq_len,), as symbols; `unscored` for anything that is not a token, such as IGNORE.

    Raises:
        ValueError: `tokens` is not one sample.
    """
    if tuple(tokens.shape) != (spec.seq_len,):
        raise ValueError(f"render takes one sample of shape ({spec.seq_len},), got {tuple(tokens.shape)}")
    return [spec.symbols[token] if 0 <= token < spec.vocab_size else unscored for token in tokens.tolist()]


def beside(left: list[str], right: list[str], gap: str = "   ") -> str:
    """Set two blocks of lines side by side."""
    height, width = max(len(left), len(right)), max(map(len, left), default=0)
    left, right = left + [""] * (height - len(left)), right + [""] * (height - len(right))
    return "\n".join(f"{a:<{width}}{gap}{b}".rstrip() for a, b in zip(left, right, strict=True))
