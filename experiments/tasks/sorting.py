"""Sorting: the answer is the input's tokens in non-decreasing order."""

from dataclasses import dataclass

import numpy as np

from loopgrad.experiments.tasks.sequences import SequenceTask


@dataclass(frozen=True)
class Sorting(SequenceTask):
    """y = x in non-decreasing order, for random tokens x in 0..num_values-1.

    The training stream is endless and never shows a sequence of the test set (a rearrangement of one it may).

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

    names = ("tokens", "sorted")

    def __post_init__(self) -> None:
        self.check_int("num_values", 2)
        super().__post_init__()

    @property
    def num_tokens(self) -> int:
        """The number of values."""
        return self.num_values

    def answers(self, sequences: np.ndarray) -> np.ndarray:
        """Return the same sorted."""
        return np.sort(sequences, axis=1)
