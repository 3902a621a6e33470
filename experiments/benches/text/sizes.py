"""Which estimators train the language model, and how much of what."""

from dataclasses import dataclass
from typing import ClassVar

from loopgrad.experiments.benches.contract import Bench
from loopgrad.models.grid_arithmetic import fraction_below_one

EXACT, CHECKPOINTED, RANDOM, FORWARD = "BPTT", "checkpointed", "random truncation", "forward state"
COUPLED, REVERSIBLE = "coupled BPTT", "coupled reversible"
TWINS = {CHECKPOINTED: EXACT, REVERSIBLE: COUPLED}
"""What has the gradient of another, bit for bit: where that is seen, one training serves both."""

BANDS = (16, 64, 256)  # characters, between which distances of recall are told apart


def truncated(window: int) -> str:
    """Return the name of TBPTT with a window."""
    return f"TBPTT({window})"


@dataclass(frozen=True)
class Sizes(Bench):
    """Sizes of the trainings.

    Args:
        lengths: Characters read, and so updates of the recursion.
        tokens: Characters of an update of the weights: a batch has tokens / length windows.
        updates: Updates of the weights.
        hidden_size: Features.
        windows: Of the truncated gradients; those that reach over a whole length are left out there, being BPTT.
        mean: Of the windows of random truncation.
        num_tangents: Of "forward state".
        forward_lengths: Those of `lengths` at which it is trained.
        gamma: Share of the velocity that the coupled recursion keeps.
        learning_rates: To choose from.
        num_chars: Characters of the tales; the last tenth is held out.
        seeds: Seeds of weights, data and noise; a row is over all of them.
        workers: Trainings at once; null: as many as there are cores. Changes no number.
    """

    lengths: tuple[int, ...] = (128, 512, 2048)
    tokens: int = 32768
    updates: int = 150
    hidden_size: int = 64
    windows: tuple[int, ...] = (16, 64, 256)
    mean: int = 64
    num_tangents: int = 8
    forward_lengths: tuple[int, ...] = (128,)
    gamma: str = "1/2"
    learning_rates: tuple[float, ...] = (0.03, 0.01)
    num_chars: int = 1_000_000
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int | None = None

    least: ClassVar = {"lengths": 2, "mean": 2}
    may_be_empty: ClassVar = frozenset({"windows", "forward_lengths"})

    def __post_init__(self) -> None:
        for name in ("lengths", "windows", "forward_lengths", "learning_rates", "seeds"):  # a configuration gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()
        if self.tokens < max(self.lengths):
            raise ValueError(f"tokens={self.tokens} must be at least the greatest length, {max(self.lengths)}")
        if unknown := set(self.forward_lengths) - set(self.lengths):
            raise ValueError(f"forward_lengths={list(self.forward_lengths)} must be of lengths, {min(unknown)} is not")
        fraction_below_one("LanguageModels", "gamma", self.gamma)
        if self.num_chars // 10 <= max(self.lengths):
            raise ValueError(
                f"num_chars={self.num_chars}: a tenth of the tales is held out, and must be longer than the greatest "
                f"length, {max(self.lengths)}"
            )

    def names(self, length: int) -> list[str]:
        """Return the estimators at a length."""
        windows = [truncated(window) for window in self.windows if window < length]
        return [EXACT, CHECKPOINTED, *windows, RANDOM, FORWARD, COUPLED, REVERSIBLE]
