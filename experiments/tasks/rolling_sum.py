"""Running sums modulo m: the smallest task whose answer needs as many sequential steps as it has tokens."""

from dataclasses import dataclass

import numpy as np

from loopgrad.experiments.tasks.sequences import SequenceTask


@dataclass(frozen=True)
class RollingSum(SequenceTask):
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
