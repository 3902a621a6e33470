"""Events that end a recursion sample by sample: a state that has settled, a head that says halt."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from loopgrad.gradients import tree
from loopgrad.gradients.checks import is_number
from loopgrad.gradients.stopped import Before


class CycleEvent(ABC):
    """An event that looks back: it compares the state at the end of a cycle with that at its beginning.

    It is asked at the ends of cycles alone, the first time after a whole cycle of the rollout.
    """

    @abstractmethod
    def __call__(self, before: Any, after: Any) -> Tensor:
        """Return for which samples it is true.

        Args:
            before: The plain state a cycle before, without a graph, the batch in dimension 0 of its leaves.
            after: The state now, likewise.

        Returns:
            (batch,) bool.
        """


@dataclass(frozen=True)
class ResidualBelow(CycleEvent):
    r"""The relative residual of the latent state is at most `tol`: the sample has settled.

    .. math:: |z_{t+p} - z_t| \le \mathrm{tol} \, |z_{t+p}|

    after a cycle of p = cell.period updates, with the norm over all floating leaves of a sample's state.

    Args:
        tol: At least 0; 0 for a state that a cycle leaves as it is, to the last bit.
        of: Called with the state, gives the part of it that is looked at, such as lambda state: state["z_H"]; None for
            all of it.

    Not recommended when:
        tol lies below what the dtype resolves, about 1e-7 in float32 and 4e-3 in bfloat16: few samples get there. A
        small residual is no proof of a fixed point near by: a slow drift has one too. A state with a number that is not
        finite never settles.

    Raises:
        TypeError: tol is not a number, or `of` cannot be called.
        ValueError: tol is below 0 or not finite.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import BPTT, ResidualBelow, Stationary, Until
        >>> cell, slow = Stationary(lambda z, x: x * z + 1), torch.tensor([[0.5], [0.9]])
        >>> rollout = BPTT()(cell, torch.zeros(2, 1), slow, 100, until=Until(ResidualBelow(1e-3), every=8))
        >>> rollout.stats.steps, rollout.stats.cell_evaluations
        ((10, 45), 48)
    """

    tol: float
    of: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if not is_number(self.tol):
            raise TypeError(f"ResidualBelow(tol={self.tol!r}) must be a number, the relative residual to reach")
        if not 0 <= self.tol < float("inf"):
            raise ValueError(f"ResidualBelow(tol={self.tol!r}) must be a finite number of at least 0")
        if self.of is not None and not callable(self.of):
            raise TypeError(f"ResidualBelow(of={self.of!r}) must be called with a state, or None for all of it")

    def __call__(self, before: Any, after: Any) -> Tensor:
        """Return whose residual is at most `tol`."""
        if self.of is not None:
            before, after = self.of(before), self.of(after)
        moved = Before(tree.flatten(before)[0]).moved(tree.flatten(after)[0])
        if moved is None:
            raise ValueError(
                "ResidualBelow: what it looks at holds no floating tensor, or changes its shape in a cycle"
            )
        return moved <= self.tol


@dataclass(frozen=True)
class Halted:
    r"""A halting head says so: :math:`\sigma(\mathrm{logit}) > 1/2`, that is logit > 0.

    Args:
        head: Called as head(state, inputs, x_t, step) after an update, as a readout is; gives a logit per sample,
            (batch,). It gets no gradient here: it is trained by a loss of its answers, as a readout.

    Raises:
        TypeError: head cannot be called.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import BPTT, Halted, Stationary, Until
        >>> cell, halt = Stationary(lambda z, x: z + x), Halted(lambda z, inputs, x, step: z[:, 0] - 2.5)
        >>> BPTT()(cell, torch.zeros(2, 1), torch.tensor([[1.0], [0.4]]), 100, until=Until(halt)).stats.steps
        (3, 7)
    """

    head: Callable[[Any, Any, Any, int], Tensor]

    def __post_init__(self) -> None:
        if isinstance(self.head, type) or not callable(self.head):
            raise TypeError(f"Halted(head={self.head!r}) must be called as head(state, inputs, x_t, step)")

    def __call__(self, state: Any, inputs: Any, x: Any, step: int) -> Tensor:
        """Return whose logit is above 0."""
        return self.head(state, inputs, x, step) > 0
