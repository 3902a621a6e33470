"""Sorting: the answer is the input's tokens in non-decreasing order."""

from dataclasses import dataclass

import numpy as np
import torch

from loopgrad.experiments.tasks import sequences
from loopgrad.experiments.tasks.base import Batch, Task, TokenSpec, batch_of, check_int, check_tokens, symbols_of


@dataclass(frozen=True)
class Sorting(Task):
    """y = x in non-decreasing order, for random tokens x in 0..num_values-1.

    The training stream is endless and never shows a sequence of the test set (it may show a rearrangement of one).

    Attributes:
        length: Tokens of a sequence.
        num_values: Number of different tokens, at least 2.
        num_test: Held-out sequences; None: 512, or a quarter of all if fewer. At most half of all num_values**length.
        data_seed: Decides the held-out sequences.

    Raises:
        ValueError: A hyperparameter is out of range.

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
        check_int("Sorting", "length", self.length, 1)
        check_int("Sorting", "num_values", self.num_values, 2)
        check_int("Sorting", "data_seed", self.data_seed, 0)
        self._held_out_count()

    @property
    def spec(self) -> TokenSpec:
        """Tokens 0..num_values-1, each standing for itself."""
        return TokenSpec(tuple(map(str, range(self.num_values))), self.length)

    def train_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Return fresh sequences and the same sorted."""
        held = self._held_out()
        x = sequences.training_sequences(
            self.num_values, self.length, held, self.data_seed, seed, step, batch_size
        )  # (batch, length)
        return batch_of(x, np.sort(x, axis=1))

    def test_set(self) -> Batch:
        """Return the held-out sequences and the same sorted."""
        x = self._held_out()
        return batch_of(x, np.sort(x, axis=1))

    def is_solved(self, inputs: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
        """Judge whether the tokens are in order and each occurs as often as in the input."""
        check_tokens(self.spec, inputs, predictions)
        return (predictions == inputs.sort(dim=1).values).all(dim=1)

    def render(self, inputs: torch.Tensor, answer: torch.Tensor) -> str:
        """Show the sequence above the sorted one."""
        rows = [symbols_of(self.spec, tokens) for tokens in (inputs, answer)]
        width = max(len(symbol) for row in rows for symbol in row)
        lines = [" ".join(symbol.rjust(width) for symbol in row) for row in rows]
        return f"tokens {lines[0]}\nsorted {lines[1]}"

    def _held_out_count(self) -> int:
        return sequences.num_held_out("Sorting", self.num_values, self.length, self.num_test)

    def _held_out(self) -> np.ndarray:
        return sequences.held_out(self.num_values, self.length, self._held_out_count(), self.data_seed)
