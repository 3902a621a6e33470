"""Tasks on random token sequences: an endless training stream that never shows a held-out sequence."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch

from loopgrad.experiments.tasks.base import IGNORE, Batch, Task, TokenSpec, batch_of
from loopgrad.experiments.tasks.streams import random_stream, step_stream


class SequenceTask(Task):
    """A task about sequences that are uniform over all of `length` tokens out of `num_tokens`.

    The inputs are the sequences, or what `inputs_of` makes of them. The training stream is endless
    and never shows a sequence of the test set. Subclasses are dataclasses with these fields and their own.

    Attributes:
        length: Tokens of a sequence.
        num_test: Held-out sequences; None: 512, or a quarter of all if fewer. At most half of all sequences.
        data_seed: Decides the held-out sequences.

    Raises:
        ValueError: A hyperparameter is out of range.
    """

    length: int
    num_test: int | None
    data_seed: int
    unscored: ClassVar[str] = "?"

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Number of different tokens, which stand for themselves."""

    @abstractmethod
    def answers(self, sequences: np.ndarray) -> np.ndarray:
        """Return the answer to each of some inputs, IGNORE where none is due, of the same shape."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, str]:
        """What stands before a sequence, and before its answer, as text."""

    def __post_init__(self) -> None:
        self.check_int("length", 1)
        self.check_int("data_seed", 0)
        self.check_int("num_test", 1, optional=True)
        every = self.num_tokens**self.length
        if self.num_test is not None and 2 * self.num_test > every:
            raise ValueError(
                f"{type(self).__name__}(num_test=...) holds out {self.num_test} of {self.num_tokens}**{self.length} = "
                f"{every} sequences; at most half may be: lower num_test or raise length"
            )

    def inputs_of(self, sequences: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the inputs that ask about some sequences: here the sequences."""
        return sequences

    @property
    def spec(self) -> TokenSpec:
        """Tokens from 0 on, each standing for itself."""
        return TokenSpec(tuple(map(str, range(self.num_tokens))), self.length)

    def train_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Return fresh sequences, uniform over those that are not held out, with their answers."""
        rng = step_stream(self.data_seed, seed, step, batch_size)
        sequences = rng.integers(0, self.num_tokens, (batch_size, self.length))
        forbidden = _as_scalars(self._held_out())
        while (again := np.isin(_as_scalars(sequences), forbidden)).any():
            sequences[again] = rng.integers(0, self.num_tokens, (int(again.sum()), self.length))
        inputs = self.inputs_of(sequences, rng)
        return batch_of(inputs, self.answers(inputs))

    def test_set(self) -> Batch:
        """Return the held-out sequences with their answers."""
        inputs = self.inputs_of(self._held_out(), random_stream(self.data_seed, 3))
        return batch_of(inputs, self.answers(inputs))

    def is_solved(self, inputs: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
        """Judge whether every token of the answer is right."""
        self.check_tokens(inputs, predictions)
        right = torch.from_numpy(self.answers(inputs.cpu().numpy())).to(predictions.device)
        return ((predictions == right) | (right == IGNORE)).all(dim=1)

    def render(self, inputs: torch.Tensor, answer: torch.Tensor) -> str:
        """Show the sequence above its answer."""
        rows = [self.symbols_of(inputs), self.symbols_of(answer, self.unscored)]
        width = max(len(symbol) for row in rows for symbol in row)
        lines = [" ".join(symbol.rjust(width) for symbol in row) for row in rows]
        return "\n".join(f"{name} {line}".rstrip() for name, line in zip(self.names, lines, strict=True))

    def _held_out(self) -> np.ndarray:
        count = self.num_test or min(512, max(1, self.num_tokens**self.length // 4))
        return _distinct(self.num_tokens, self.length, count, self.data_seed)


@dataclass(frozen=True)
class RollingSum(SequenceTask):
    """y_i = (x_0 + ... + x_i) mod m for random tokens x in 0..m-1; m = 2 is the running parity.

    The smallest task whose answer needs as many sequential steps as it has tokens.

    Attributes:
        modulus: m, also the number of tokens, at least 2; the others are those of `SequenceTask`.

    Example:
        >>> import torch
        >>> from loopgrad.experiments.tasks import RollingSum
        >>> task = RollingSum(length=4, modulus=5)
        >>> task.is_solved(torch.tensor([[1, 4, 3, 2]]), torch.tensor([[1, 0, 3, 0]]))
        tensor([True])
    """

    length: int = 16
    modulus: int = 5
    num_test: int | None = None
    data_seed: int = 0

    def __post_init__(self) -> None:
        self.check_int("modulus", 2)
        super().__post_init__()

    @property
    def num_tokens(self) -> int:
        """The modulus."""
        return self.modulus

    @property
    def names(self) -> tuple[str, str]:
        """Names of the tokens and of their running sums."""
        return "tokens      ", f"sum mod {self.modulus:<4}"

    def answers(self, sequences: np.ndarray) -> np.ndarray:
        """Return running sums."""
        return sequences.cumsum(axis=1) % self.modulus


@dataclass(frozen=True)
class Sorting(SequenceTask):
    """y = x in non-decreasing order, for random tokens x in 0..num_values-1.

    A rearrangement of a held-out sequence may be shown in training.

    Attributes:
        num_values: Number of different tokens, at least 2; the others are those of `SequenceTask`.

    Example:
        >>> import torch
        >>> from loopgrad.experiments.tasks import Sorting
        >>> task = Sorting(length=4)
        >>> task.is_solved(torch.tensor([[3, 1, 1, 0]]), torch.tensor([[0, 1, 1, 3]]))
        tensor([True])
    """

    length: int = 16
    num_values: int = 10
    num_test: int | None = None
    data_seed: int = 0

    def __post_init__(self) -> None:
        self.check_int("num_values", 2)
        super().__post_init__()

    @property
    def num_tokens(self) -> int:
        """The number of values."""
        return self.num_values

    @property
    def names(self) -> tuple[str, str]:
        """Names of the tokens and of the same sorted."""
        return "tokens", "sorted"

    def answers(self, sequences: np.ndarray) -> np.ndarray:
        """Return the same sorted."""
        return np.sort(sequences, axis=1)


@lru_cache(maxsize=8)
def _distinct(num_tokens: int, length: int, count: int, data_seed: int) -> np.ndarray:
    """Return distinct random sequences, (count, length), the same for the same arguments."""
    rng = random_stream(data_seed, 0)
    found: dict[bytes, np.ndarray] = {}
    while len(found) < count:
        for sequence in rng.integers(0, num_tokens, (count - len(found), length)):
            found.setdefault(sequence.tobytes(), sequence)
    sequences = np.stack(list(found.values()))
    sequences.flags.writeable = False  # shared by every caller
    return sequences


def _as_scalars(sequences: np.ndarray) -> np.ndarray:
    # one opaque value per row, so that whole rows can be looked up
    rows = np.ascontiguousarray(sequences)
    return rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
