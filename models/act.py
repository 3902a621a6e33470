"""Adaptive computation time: after which cycle of a segment a sample has its answer, learnt with the answer."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from loopgrad.gradients.checks import is_number
from loopgrad.models.halting import Counted, check_halting


class Pondered(NamedTuple):
    """What adaptive computation time makes of the answers of a segment's cycles.

    Attributes:
        logits: (batch, ...), their weighted mean.
        ponder: (batch,), N + R, to be kept small.
        cycles: (batch,) int64, N.
    """

    logits: Tensor
    ponder: Tensor
    cycles: Tensor


@dataclass(frozen=True)
class ACT(Counted):
    r"""Adaptive computation time within a segment: the answer is a mean over its cycles, weighted by halting units.

    With h_n = sigmoid(q_halt) after cycle n of at most H_cycles,

    .. math:: N = \min\{n : \sum_{i \le n} h_i \ge 1 - \epsilon\}, \quad R = 1 - \sum_{i < N} h_i, \quad
        y = \sum_{n < N} h_n y_n + R y_N

    and ponder_weight times the mean of N + R is added to the loss; N is H_cycles where the sum stays below. Graves
    averages outputs and states; here the logits are averaged, and the carry, which he has none of, goes on from the
    last state. His units start out near one, ours near 0.007 (the bias of -5): a model ponders in full until the cost
    tells it not to. Evaluation answers in the same way.

    Args:
        num_segments: Segments per sample, at least 1.
        epsilon: In (0, 1): how much of the sum may be missing, so that one cycle can be enough.
        ponder_weight: Weight of the ponder cost, at least 0; 0 leaves the number of cycles free.

    Cost:
        All H_cycles are run, with a readout after each. The answers are emitted by the estimator, which must have
        more than the gradient of the last state: implicit, phantom and TorchDEQ are refused.
    Not recommended when:
        Time is to be saved: the samples of a batch wait for each other. The weight of the cost is hard to set, as
        Graves says himself; compare a few.
    Reference:
        Graves 2016, arXiv 1603.08983, equations 5 to 14.

    Raises:
        TypeError: num_segments is not an int.
        ValueError: A number is out of range.

    Example:
        >>> import torch
        >>> from loopgrad.models import ACT
        >>> halt = torch.logit(torch.tensor([[0.5], [0.25], [0.5]]))  # three cycles, one sample
        >>> found = ACT(epsilon=0.01).answer(torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1), halt)
        >>> found.logits.item(), found.cycles.item(), found.ponder.item()  # 0.5 + 0.5 + 0.75; 3; 3 + 0.25
        (1.75, 3, 3.25)
    """

    references = ("graves2016adaptive",)
    num_segments: int = 1
    epsilon: float = 0.01
    ponder_weight: float = 0.01

    def __post_init__(self) -> None:
        check_halting(self.num_segments, 0.0, "num_segments")
        if not is_number(self.epsilon) or not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon={self.epsilon} must be in (0, 1)")
        if not is_number(self.ponder_weight) or not 0 <= self.ponder_weight < float("inf"):
            raise ValueError(f"ponder_weight={self.ponder_weight} must be a finite number of at least 0")

    def q_loss(self, q_halt: Tensor, q_continue: Tensor, solved: Tensor, target: Tensor | None) -> Tensor:
        """Return zero: the halting units learn from the answer and the ponder cost."""
        return q_halt.new_zeros(())

    def depth(self, drawn: object) -> "ACT":
        """Return this rule, for the model to run its segment by.

        Raises:
            ValueError: A depth is drawn too.
        """
        if drawn is not None:
            raise ValueError("ACT learns the depth within H_cycles, so that none can be drawn: leave depths out")
        return self

    def answer(self, logits: Tensor, q_halt: Tensor) -> Pondered:
        """Return the mean answer, the ponder cost and the number of cycles.

        Args:
            logits: (cycles, batch, ...), after each cycle.
            q_halt: (cycles, batch), the logits of h.
        """
        h = q_halt.sigmoid()
        before = torch.cat([torch.zeros_like(h[:1]), h.cumsum(0)[:-1]])
        going = ~(before >= 1 - self.epsilon)  # so that nan goes on, and shows
        cycles = going.sum(0)
        last = torch.arange(len(h), device=h.device)[:, None] == cycles - 1
        remainder = 1 - before
        weights = torch.where(last, remainder, torch.where(going, h, 0.0))
        ponder = cycles + torch.where(last, remainder, 0.0).sum(0)
        mean = (weights.view(*h.shape, *[1] * (logits.dim() - 2)) * logits).sum(0)
        return Pondered(mean, ponder, cycles)
