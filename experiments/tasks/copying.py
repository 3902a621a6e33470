"""Copying a sequence from memory, once or several times: read all of it, then say it without seeing it.

With tokens in place of the vectors of random bits of Graves et al. 2014, and sequences of one length.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from loopgrad.experiments.tasks.base import IGNORE, TokenSpec
from loopgrad.experiments.tasks.sequences import SequenceTask
from loopgrad.gradients.host_memory import check_fits

SILENT = "."


class _Recall(SequenceTask):
    """A sequence, a mark that asks for it, and then nothing to read while it is said.

    Tokens 0..num_values-1 are the values; then come the marks, and last the token that stands for nothing.
    """

    unscored: ClassVar[str] = " "
    num_values: int

    @property
    @abstractmethod
    def marks(self) -> tuple[str, ...]:
        """Names of the marks."""

    @property
    @abstractmethod
    def answer_length(self) -> int:
        """Tokens of the longest answer."""

    @property
    def num_tokens(self) -> int:
        """The number of values."""
        return self.num_values

    @property
    def names(self) -> tuple[str, str]:
        """Names of the tokens and of what is to be said."""
        return "tokens", "answer"

    @property
    def spec(self) -> TokenSpec:
        """Values, marks, and the token that stands for nothing."""
        symbols = *map(str, range(self.num_values)), *self.marks, SILENT
        return TokenSpec(symbols, self.length + 1 + self.answer_length)

    def __post_init__(self) -> None:
        self.check_int("num_values", 2)
        super().__post_init__()
        held_out, tokens = self.num_test or 512, self.spec.seq_len
        check_fits(8 * held_out * tokens, f"{type(self).__name__}: {held_out} held-out samples of {tokens} tokens")

    def _followed_by(self, sequences: np.ndarray, marks: np.ndarray) -> np.ndarray:
        silence = np.full((len(sequences), self.answer_length), self.spec.vocab_size - 1)
        return np.concatenate([sequences, marks[:, None], silence], axis=1)


@dataclass(frozen=True)
class Copy(_Recall):
    """Say a sequence that was read: x_1 .. x_n | . . . asks for x_1 .. x_n, one token at each dot.

    Attributes:
        num_values: Number of different tokens, at least 2; the others are those of `SequenceTask`.

    Reference:
        Graves et al. 2014, arXiv 1410.5401.

    Example:
        >>> import torch
        >>> from loopgrad.experiments.tasks import Copy
        >>> sample = Copy(length=3, num_values=4).test_set()
        >>> print(Copy(length=3, num_values=4).render(sample.inputs[0], sample.labels[0]))
        tokens 3 3 0 | . . .
        answer         3 3 0
    """

    references = ("graves2014neural",)
    length: int = 10
    num_values: int = 8
    num_test: int | None = None
    data_seed: int = 0

    @property
    def marks(self) -> tuple[str, ...]:
        """The end of the sequence."""
        return ("|",)

    @property
    def answer_length(self) -> int:
        """The length of the sequence."""
        return self.length

    def inputs_of(self, sequences: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the sequences with the mark and silence after them."""
        return self._followed_by(sequences, np.full(len(sequences), self.num_values))

    def answers(self, sequences: np.ndarray) -> np.ndarray:
        """Return what is to be said."""
        said = np.full(sequences.shape, IGNORE)
        said[:, self.length + 1 :] = sequences[:, : self.length]
        return said


@dataclass(frozen=True)
class RepeatCopy(_Recall):
    """Say a sequence r times and then stop, r being told by the mark: x_1 x_2 x2 . . . . asks for x_1 x_2 x_1 x_2 end.

    r is drawn uniformly from 1..repeats. A held-out sequence is shown in training with no r.

    Attributes:
        repeats: Greatest r, at least 1.
        num_values: Number of different tokens, at least 2; the others are those of `SequenceTask`.

    Reference:
        Graves et al. 2014, arXiv 1410.5401.

    Example:
        >>> import torch
        >>> from loopgrad.experiments.tasks import RepeatCopy
        >>> task = RepeatCopy(length=2, repeats=3, num_values=4)
        >>> sample = task.train_batch(seed=0, step=0, batch_size=1)
        >>> print(task.render(sample.inputs[0], sample.labels[0]))
        tokens   3   1  x2   .   .   .   .   .   .   .
        answer               3   1   3   1 end
    """

    references = ("graves2014neural",)
    length: int = 5
    repeats: int = 3
    num_values: int = 8
    num_test: int | None = None
    data_seed: int = 0

    def __post_init__(self) -> None:
        self.check_int("repeats", 1)
        super().__post_init__()

    @property
    def marks(self) -> tuple[str, ...]:
        """How often the sequence is to be said, and the end of what is said."""
        return *(f"x{count}" for count in range(1, self.repeats + 1)), "end"

    @property
    def answer_length(self) -> int:
        """All repetitions and the end."""
        return self.length * self.repeats + 1

    def inputs_of(self, sequences: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the sequences with a random number of repetitions and silence after them."""
        return self._followed_by(sequences, self.num_values + rng.integers(0, self.repeats, len(sequences)))

    def answers(self, sequences: np.ndarray) -> np.ndarray:
        """Return what is to be said, and where it ends; nothing is scored after that."""
        said = np.full(sequences.shape, IGNORE)
        counts = sequences[:, self.length] - self.num_values + 1
        of_longest = np.tile(sequences[:, : self.length], self.repeats)
        place = np.arange(self.answer_length)
        end = (self.length * counts)[:, None]
        answer = np.where(place < end, np.pad(of_longest, ((0, 0), (0, 1))), IGNORE)
        said[:, self.length + 1 :] = np.where(place == end, self.num_values + self.repeats, answer)
        return said
