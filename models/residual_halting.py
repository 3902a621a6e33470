"""Halting by what the state itself says: a sample stops being refined when a segment hardly changes it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from loopgrad.gradients.checks import is_number
from loopgrad.models.halting import Halting, check_halting


@dataclass(frozen=True)
class ResidualHalt(Halting):
    """Stop when a segment changes the latent state by less than a tolerance, at the latest at max_segments.

    The change is |z' - z| / |z'| over all streams and positions of a sample, z before and z' after the segment. The q
    head is neither obeyed nor trained.

    Args:
        tolerance: Relative change below which a sample stops, above 0.
        max_segments: Most segments in training; as many are run in evaluation.

    Not recommended when:
        States do not settle, which is how most recursive models are trained: then everything runs to max_segments. A
        state that has settled need not be right.
    """

    needs_change: ClassVar[bool] = True
    tolerance: float = 0.05
    max_segments: int = 16

    def __post_init__(self) -> None:
        check_halting(self.max_segments, 0.0, "max_segments")
        if not is_number(self.tolerance) or not 0 < self.tolerance < float("inf"):
            raise ValueError(f"tolerance={self.tolerance} must be a finite number above 0")

    def halts(
        self,
        segment: Tensor,
        q_halt: Tensor,
        q_continue: Tensor,
        generator: torch.Generator | None = None,
        change: Tensor | None = None,
    ) -> Tensor:
        """Stop where the change is below the tolerance.

        Raises:
            ValueError: The change is not given.
        """
        if change is None:
            raise ValueError("ResidualHalt goes by the change of the state: pass change=, (batch,)")
        return (segment >= self.max_segments) | (change < self.tolerance)

    def q_loss(self, q_halt: Tensor, q_continue: Tensor, solved: Tensor, target: Tensor | None) -> Tensor:
        """Return zero."""
        return q_halt.new_zeros(())
