"""Running sums modulo m: the smallest task whose answer needs as many sequential steps as it has tokens."""

from dataclasses import dataclass

import numpy as np
import torch

from loopgrad.experiments.tasks import sequences
from loopgrad.experiments.tasks.base import Batch, Task, TokenSpec, batch_of, check_int, check_tokens, symbols_of


@dataclass(frozen=True)
class RollingSum(Task):
    """y_i = (x_0 + ... + x_i) mod m for random tokens x in 0..m-1; m = 2 is the running parity.

    The training stream is endless and never shows a sequence of the test set.

    Attributes:
        length: Tokens of a sequence.
        modulus: m, also the number of tokens, at least 2.
        num_test: Held-out sequences; None: 512, or a quarter of all if fewer. At most half of all m**length.
        data_seed: Decides the held-out sequences.

    Raises:
        ValueError: A hyperparameter is out of range.

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
        check_int("RollingSum", "length", self.length, 1)
        check_int("RollingSum", "modulus", self.modulus, 2)
        check_int("RollingSum", "data_seed", self.data_seed, 0)
        self._held_out_count()

    @property
    def spec(self) -> TokenSpec:
        """Tokens 0..m-1, each standing for itself."""
        return TokenSpec(tuple(map(str, range(self.modulus))), self.length)

    def train_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Return fresh sequences and their running sums."""
        held = self._held_out()
        x = sequences.training_sequences(
            self.modulus, self.length, held, self.data_seed, seed, step, batch_size
        )  # (batch, length)
        return batch_of(x, x.cumsum(axis=1) % self.modulus)

    def test_set(self) -> Batch:
        """Return the held-out sequences and their running sums."""
        x = self._held_out()
        return batch_of(x, x.cumsum(axis=1) % self.modulus)

    def is_solved(self, inputs: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
        """Judge whether every running sum is right."""
        check_tokens(self.spec, inputs, predictions)
        return (predictions == inputs.cumsum(dim=1) % self.modulus).all(dim=1)

    def render(self, inputs: torch.Tensor, answer: torch.Tensor) -> str:
        """Show the sequence above its running sums."""
        rows = [symbols_of(self.spec, tokens) for tokens in (inputs, answer)]
        width = max(len(symbol) for row in rows for symbol in row)
        lines = [" ".join(symbol.rjust(width) for symbol in row) for row in rows]
        return f"tokens       {lines[0]}\nsum mod {self.modulus:<4} {lines[1]}"

    def _held_out_count(self) -> int:
        return sequences.num_held_out("RollingSum", self.modulus, self.length, self.num_test)

    def _held_out(self) -> np.ndarray:
        return sequences.held_out(self.modulus, self.length, self._held_out_count(), self.data_seed)
