"""The sum of all tokens, asked for with and without its steps: what a recursion infers, and what it may be shown."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from loopgrad.experiments.tasks.base import IGNORE, TokenSpec
from loopgrad.experiments.tasks.sequences import RollingSum


@dataclass(frozen=True)
class LastSum(RollingSum):
    """y = (x_1 + ... + x_n) mod m, said at the last token: nothing on the way is scored.

    Attributes:
        modulus: m; it and the others are those of `RollingSum`.

    Not recommended when:
        Something is to be learnt quickly: one token in n is scored, and its answer depends on all others.

    Example:
        >>> import torch
        >>> from loopgrad.experiments.tasks import LastSum
        >>> task = LastSum(length=4, modulus=5)
        >>> task.is_solved(torch.tensor([[1, 4, 3, 2]]), torch.tensor([[4, 4, 4, 0]]))
        tensor([True])
    """

    unscored: ClassVar[str] = " "
    length: int = 8
    modulus: int = 2

    @property
    def names(self) -> tuple[str, str]:
        """Names of the tokens and of their sum."""
        return "tokens", "sum   "

    def answers(self, sequences: np.ndarray) -> np.ndarray:
        """Return the sum at the last token."""
        found = np.full(sequences.shape, IGNORE)
        found[:, -1] = super().answers(sequences)[:, -1]
        return found


@dataclass(frozen=True)
class SumBySteps(RollingSum):
    """The same sum for a model that says its steps: x_1 .. x_n = s_1 .. s_{n-1} asks for s_1 .. s_n from the mark on.

    s_i = (x_1 + ... + x_i) mod m. The steps are shown as in training by teacher forcing, each after it was asked for.
    For a causal model that says each token greedily, all of them being right is the same as saying all of them by
    itself from the mark on, so that samples exact are those that it would solve unaided.

    Attributes:
        modulus: m; it and the others are those of `RollingSum`.

    Not recommended when:
        The model is not causal: it would read its answers off the next tokens.

    Reference:
        Nye et al. 2021, arXiv 2112.00114 (steps written out by an algorithm).

    Example:
        >>> from loopgrad.experiments.tasks import SumBySteps
        >>> sample = SumBySteps(length=4, modulus=5).test_set()
        >>> print(SumBySteps(length=4, modulus=5).render(sample.inputs[0], sample.labels[0]))
        tokens 4 4 0 1 = 4 3 3
        steps          4 3 3 4
    """

    references = ("nye2021show",)
    unscored: ClassVar[str] = " "
    length: int = 8
    modulus: int = 2

    @property
    def names(self) -> tuple[str, str]:
        """Names of the tokens and of the steps."""
        return "tokens", "steps "

    @property
    def spec(self) -> TokenSpec:
        """Values and the mark."""
        return TokenSpec((*map(str, range(self.modulus)), "="), 2 * self.length)

    def inputs_of(self, sequences: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the sequences, the mark, and all steps but the last."""
        mark = np.full((len(sequences), 1), self.modulus)
        return np.concatenate([sequences, mark, super().answers(sequences)[:, :-1]], axis=1)

    def answers(self, sequences: np.ndarray) -> np.ndarray:
        """Return the steps, from the mark on."""
        found = np.full(sequences.shape, IGNORE)
        found[:, self.length :] = super().answers(sequences[:, : self.length])
        return found
