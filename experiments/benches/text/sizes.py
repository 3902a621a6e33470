"""Which estimators train the language model, and how much of what."""

from dataclasses import dataclass

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

    def __post_init__(self) -> None:
        several = ("lengths", "windows", "forward_lengths", "learning_rates", "seeds")
        for name in several:  # a configuration gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        least = {"lengths": 2, "tokens": max(self.lengths, default=1), "updates": 1, "hidden_size": 1, "windows": 1}
        least |= {"mean": 2, "num_tangents": 1, "forward_lengths": 1, "num_chars": 1, "seeds": 0}
        least |= {"workers": 1} if self.workers is not None else {}
        for name, bound in least.items():
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            if min(values, default=bound) < bound or (name in ("lengths", "seeds") and not values):
                raise ValueError(f"{name}={value} must be at least {bound}" + (", and one" * (name in several)))
        if not self.learning_rates or not min(self.learning_rates) > 0:
            raise ValueError(f"learning_rates={list(self.learning_rates)} must be above 0")
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
