"""A schedule of an estimator over training: an integer hyperparameter that goes from one value to another."""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from torch import nn

from loopgrad.gradients.checks import check_int, is_int
from loopgrad.gradients.contract import Estimator, Rollout


@dataclass(frozen=True)
class Ramp(Estimator):
    r"""An estimator of which one number follows the training step: more backward steps as training goes on, say.

    .. math:: k(s) = \mathrm{first} + \lfloor \min(1, s / \mathrm{over}) \, (\mathrm{last} - \mathrm{first}) \rfloor

    rounded towards `first`, at training step s = 0, 1, ... `loopgrad train` and `compare` call `at(s)` before each
    step, and so does a training loop of one's own. Called itself it is the estimator with `last`. HRM-Text warms up
    from 2 to 5 backward steps: Ramp(TruncatedBPTT(scope=BackwardSteps(5)), "scope.steps", 2, 5, over).

    Args:
        estimator: The estimator.
        parameter: Name of an int among its hyperparameters, or, with a dot, of one of its scope's or fallback's, such
            as "scope.steps".
        first: Its value at step 0.
        last: Its value from step `over` on.
        over: Training steps from the one to the other, at least 1.

    Cost:
        That of the estimator with the value of the step. Noise goes on from step to step as without a ramp.
    Not recommended when:
        Estimators are compared at equal memory: what counts is the largest value.
    Reference:
        Wang et al. 2026, arXiv 2605.20613 ("warmup deep credit assignment"), whose code rounds so.

    Raises:
        TypeError: estimator is none, or is a ramp itself; parameter is no text; a number is no int.
        ValueError: The estimator has no such int, or refuses `first` or `last`; over is below 1.

    Example:
        >>> from loopgrad.gradients import Ramp, TruncatedBPTT
        >>> ramp = Ramp(TruncatedBPTT(num_cycles=1), "num_cycles", first=1, last=4, over=30)
        >>> [ramp.at(step).num_cycles for step in (0, 9, 10, 20, 29, 30, 1000)]
        [1, 1, 2, 3, 3, 4, 4]
    """

    estimator: Estimator
    parameter: str
    first: int
    last: int
    over: int

    kind = "biased"
    memory = "that of its estimator"
    references = ("wang2026hrm",)

    def __post_init__(self) -> None:
        if not isinstance(self.estimator, Estimator) or isinstance(self.estimator, Ramp):
            found = type(self.estimator).__name__
            raise TypeError(f"Ramp(estimator=...) must be an estimator that is no ramp itself, got {found}")
        if not isinstance(self.parameter, str):
            raise TypeError(f"Ramp(parameter={self.parameter!r}) must be the name of a hyperparameter")
        for name, least in (("first", 0), ("last", 0), ("over", 1)):
            check_int("Ramp", name, getattr(self, name), least)
        for name in ("first", "last"):
            try:
                end = _with(self.estimator, self.parameter.split("."), getattr(self, name), self.parameter)
            except (ValueError, TypeError) as error:
                raise type(error)(f"Ramp({name}={getattr(self, name)}): {error}") from error
        for name in ("kind", "memory", "not_differentiated", "outputs", "by_sample", "lengths"):
            if hasattr(end, name):  # what it claims is what the last one claims
                object.__setattr__(self, name, getattr(end, name))

    def at(self, step: int) -> Estimator:
        """Return the estimator of a training step, counted from 0; it draws from the generators of this one."""
        value = self.first + int(min(1, step / self.over) * (self.last - self.first))
        return _with(self.estimator, self.parameter.split("."), value, self.parameter)

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Run the estimator with `last`."""
        return self.at(self.over).rollout(cell, state, inputs, num_steps)


def estimator_at(estimator: Estimator, step: int) -> Estimator:
    """Return the estimator of a training step, counted from 0: that of a `Ramp`, any other one as it is."""
    return estimator.at(step) if isinstance(estimator, Ramp) else estimator


def _with(owner: Any, path: list[str], value: int, parameter: str) -> Any:
    """Return a dataclass with an int in it replaced, which shares with it all that is no argument, as generators."""
    name, *rest = path
    kind, known = type(owner).__name__, [field.name for field in dataclasses.fields(owner) if field.compare]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known
        raise ValueError(f"parameter={parameter!r}: {kind} takes no {name!r}; the nearest names are {', '.join(near)}")
    old = getattr(owner, name)
    if rest:
        if not dataclasses.is_dataclass(old):
            raise ValueError(f"parameter={parameter!r}: {kind} has {name}={old!r}, which has no {rest[0]!r}")
        new = _with(old, rest, value, parameter)
    elif not is_int(old):
        raise ValueError(f"parameter={parameter!r}: {kind} has {name}={old!r}, and a ramp goes over ints: give it one")
    else:
        new = value
    changed = dataclasses.replace(owner, **{name: new})
    for field in dataclasses.fields(owner):
        if not field.compare:
            object.__setattr__(changed, field.name, getattr(owner, field.name))
    return changed
