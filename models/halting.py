"""When a sample stops being refined: after a fixed number of segments, or when the q head says so.

`ResidualHalt` goes by the change of the state, `ACT` weighs the cycles of a segment instead.

Halting is a matter of training alone: evaluation runs every sample for max_segments segments.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from loopgrad.gradients.checks import is_int


class Halting(ABC):
    """A halting rule and the loss that trains the q head for it; a frozen dataclass of hyperparameters.

    Attributes:
        needs_next_segment: Whether `q_loss` wants the q values of one more segment.
        needs_change: Whether `halts` wants `change`, (batch,): |z' - z| / |z'| over the segment.
        ponder_weight: Weight in the loss of what the model says its depth has cost.
    """

    references: ClassVar[tuple[str, ...]] = ()
    needs_next_segment: ClassVar[bool] = False
    needs_change: ClassVar[bool] = False
    max_segments: int
    ponder_weight: float = 0.0

    def depth(self, drawn: Any) -> Any:
        """Return how deep a segment is, as `RecursiveModel.forward` takes it: as drawn, None for the model's own."""
        return drawn

    def explored(self, batch: int, generator: torch.Generator | None) -> Tensor | None:
        """Draw how many segments each sample must run at least, (batch,) int64; None where nothing is explored.

        What is drawn for a whole batch can be given to `halts` for some of its rows, as `least`.
        """
        return None

    @abstractmethod
    def halts(
        self, segment: Tensor, q_halt: Tensor, q_continue: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Say which samples stop, in training: (batch,) bool.

        Args:
            segment: (batch,) int64, segments done including this one.
            q_halt: (batch,) logits.
            q_continue: (batch,) logits.
            generator: Source of exploration.
        """

    @abstractmethod
    def q_loss(self, q_halt: Tensor, q_continue: Tensor, solved: Tensor, target: Tensor | None) -> Tensor:
        """Return the loss of the q head, mean over the batch, to be added to the token loss.

        Args:
            q_halt: (batch,) logits.
            q_continue: (batch,) logits.
            solved: (batch,) bool, whether all scored tokens are right.
            target: (batch,) `continue_target`, where `needs_next_segment`.
        """


@dataclass(frozen=True)
class Counted(Halting):
    """Base of rules under which every sample runs so many segments."""

    num_segments: int

    @property
    def max_segments(self) -> int:  # type: ignore[override]
        """Segments of evaluation, num_segments."""
        return self.num_segments

    def halts(
        self, segment: Tensor, q_halt: Tensor, q_continue: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Stop at num_segments."""
        return segment >= self.num_segments


@dataclass(frozen=True)
class FixedSegments(Counted):
    """Every sample runs num_segments segments.

    Args:
        num_segments: Segments per sample, at least 1.
        halt_loss: Whether the q head still learns to tell right answers, 0.5 BCE(q_halt, solved), without being obeyed.

    Not recommended when:
        Many samples are right after few segments: they are refined anyway.
    """

    halt_loss: bool = False

    def __post_init__(self) -> None:
        check_halting(self.num_segments, 0.0, "num_segments")

    def q_loss(self, q_halt: Tensor, q_continue: Tensor, solved: Tensor, target: Tensor | None) -> Tensor:
        """Return 0.5 BCE(q_halt, solved), or zero."""
        return _half_bce(q_halt, solved) if self.halt_loss else q_halt.new_zeros(())


@dataclass(frozen=True)
class QHalt(Halting):
    """TRM's rule: stop when q_halt > 0, at the latest at max_segments; q_halt learns whether the answer is right.

    With probability `exploration` a sample must run at least U{2..max_segments} segments (drawn anew at each segment).
    Loss: 0.5 BCE(q_halt, solved).

    Args:
        max_segments: Most segments in training; as many are run in evaluation.
        exploration: Probability, 0 to 1.

    Not recommended when:
        Answers are rarely right in training: then everything runs to max_segments anyway.
    Reference:
        Jolicoeur-Martineau 2025, arXiv 2510.04871, section 4.6.
    """

    references = ("jolicoeurmartineau2025less",)
    max_segments: int = 16
    exploration: float = 0.1

    def __post_init__(self) -> None:
        check_halting(self.max_segments, self.exploration, "max_segments")

    def _wants(self, q_halt: Tensor, q_continue: Tensor) -> Tensor:
        return q_halt > 0

    def explored(self, batch: int, generator: torch.Generator | None) -> Tensor | None:
        """Draw U{2..max_segments} with probability `exploration`, else 0.

        Raises:
            ValueError: There is something to draw, and no generator.
        """
        if self.max_segments == 1 or self.exploration == 0:
            return None
        if generator is None:
            raise ValueError(
                f"exploration={self.exploration} draws random numbers: pass generator=, or set exploration=0"
            )
        # drawn where the generator lives: the same numbers on every device
        explores = torch.rand((batch,), generator=generator, device=generator.device) < self.exploration
        least = torch.randint(2, self.max_segments + 1, (batch,), generator=generator, device=generator.device)
        return explores * least

    def halts(
        self,
        segment: Tensor,
        q_halt: Tensor,
        q_continue: Tensor,
        generator: torch.Generator | None = None,
        least: Tensor | None = None,
    ) -> Tensor:
        """Stop where the q head says so, exploration permitting: `least` as `explored` drew it, or drawn here."""
        wants, last = self._wants(q_halt, q_continue), segment >= self.max_segments
        least = self.explored(len(segment), generator) if least is None else least
        return last | wants if least is None else last | (wants & (segment >= least.to(segment.device)))

    def q_loss(self, q_halt: Tensor, q_continue: Tensor, solved: Tensor, target: Tensor | None) -> Tensor:
        """Return 0.5 BCE(q_halt, solved)."""
        return _half_bce(q_halt, solved)


@dataclass(frozen=True)
class QLearning(QHalt):
    """HRM's rule: stop when q_halt > q_continue, at the latest at max_segments; both learn by Q-learning.

    Exploration is that of `QHalt`. Loss: 0.5 (BCE(q_halt, solved) + BCE(q_continue, target)), see `continue_target`.

    Args:
        max_segments: Most segments in training; as many are run in evaluation.
        exploration: Probability, 0 to 1.

    Cost:
        One more segment without a graph per training step, for the target.
    Not recommended when:
        Time counts: TRM does without q_continue and reports 87.4 % on Sudoku, 86.1 % with it.
    Reference:
        Wang et al. 2025, arXiv 2506.21734, section 2 ("adaptive computational time").
    """

    references = ("wang2025hierarchical",)
    needs_next_segment = True

    def _wants(self, q_halt: Tensor, q_continue: Tensor) -> Tensor:
        return q_halt > q_continue

    def q_loss(self, q_halt: Tensor, q_continue: Tensor, solved: Tensor, target: Tensor | None) -> Tensor:
        """Return 0.5 (BCE(q_halt, solved) + BCE(q_continue, target)), the second where a target is given."""
        loss = super().q_loss(q_halt, q_continue, solved, target)
        return loss if target is None else loss + _half_bce(q_continue, target)


def continue_target(segment: Tensor, max_segments: int, next_q_halt: Tensor, next_q_continue: Tensor) -> Tensor:
    """Return what q_continue should be: sigmoid of the best q of the next segment, of its q_halt after the last one.

    Args:
        segment: (batch,) int64, segments done.
        max_segments: Segments at most.
        next_q_halt: (batch,) logits after one more segment.
        next_q_continue: (batch,) logits after one more segment.

    Returns:
        (batch,) probabilities.
    """
    best = torch.maximum(next_q_halt, next_q_continue)
    return torch.where(segment >= max_segments, next_q_halt, best).sigmoid()


def _half_bce(logit: Tensor, target: Tensor) -> Tensor:
    return 0.5 * F.binary_cross_entropy_with_logits(logit, target.to(logit.dtype))


def check_halting(max_segments: int, exploration: float, name: str) -> None:
    """Raise unless these are a number of segments, of such a name, and a probability."""
    if not is_int(max_segments):
        raise TypeError(f"{name} must be an int, the segments per sample, got {max_segments!r}")
    if max_segments < 1:
        raise ValueError(f"{name} must be at least 1, got {max_segments}")
    if not 0 <= exploration <= 1:
        raise ValueError(f"exploration is a probability, between 0 and 1, got {exploration}")
