"""How the learning rate goes over training: a linear warm-up, then constant, or down by a cosine or a line."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule(ABC):
    """A factor on every learning rate: t / warmup_steps for the first steps, then `after` the warm-up."""

    def factor(self, step: int, train_steps: int, warmup_steps: float) -> float:
        """Return the factor of a step.

        Args:
            step: t, counted from 1.
            train_steps: Steps in all.
            warmup_steps: Steps over which the rate rises from 0, at least 0.
        """
        if step < warmup_steps:
            return step / warmup_steps
        return self.after(min(1.0, (step - warmup_steps) / max(1, train_steps - warmup_steps)))

    @abstractmethod
    def after(self, progress: float) -> float:
        """Return the factor after the warm-up; progress goes from 0 at its end to 1 at the last step."""


@dataclass(frozen=True)
class Constant(Schedule):
    """1 after the warm-up: what HRM and TRM do, whose cosine has a least ratio of 1.

    Example:
        >>> from loopgrad.experiments.trainer import Constant
        >>> [Constant().factor(step, train_steps=8, warmup_steps=4) for step in (1, 2, 4, 8)]
        [0.25, 0.5, 1.0, 1.0]
    """

    def after(self, progress: float) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class _Falling(Schedule):
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_ratio <= 1:
            raise ValueError(f"min_ratio={self.min_ratio} must be in [0, 1]: what is left of the rate at the last step")

    def after(self, progress: float) -> float:
        """Return min_ratio and what is left of the rest."""
        return self.min_ratio + (1 - self.min_ratio) * self.left(progress)

    @abstractmethod
    def left(self, progress: float) -> float:
        """Return what is left, from 1 to 0."""


@dataclass(frozen=True)
class Cosine(_Falling):
    """min_ratio + (1 - min_ratio) (1 + cos(pi s)) / 2, where s goes from 0 to 1 after the warm-up.

    There are no restarts; the code of HRM and TRM has the same.

    Args:
        min_ratio: Factor at the last step, in [0, 1].

    Raises:
        ValueError: min_ratio is out of range.

    Reference:
        Loshchilov and Hutter 2017, arXiv 1608.03983.

    Example:
        >>> from loopgrad.experiments.trainer import Cosine
        >>> [round(Cosine(0.1).factor(step, train_steps=8, warmup_steps=4), 3) for step in (2, 4, 6, 8)]
        [0.5, 1.0, 0.55, 0.1]
    """

    references = ("loshchilov2017sgdr",)

    def left(self, progress: float) -> float:
        """Return half a wave."""
        return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Linear(_Falling):
    """min_ratio + (1 - min_ratio) (1 - s), where s goes from 0 to 1 after the warm-up.

    Args:
        min_ratio: Factor at the last step, in [0, 1].

    Raises:
        ValueError: min_ratio is out of range.

    Example:
        >>> from loopgrad.experiments.trainer import Linear
        >>> [round(Linear(0.1).factor(step, train_steps=8, warmup_steps=4), 3) for step in (2, 4, 6, 8)]
        [0.5, 1.0, 0.55, 0.1]
    """

    def left(self, progress: float) -> float:
        """Return a line."""
        return 1 - progress
