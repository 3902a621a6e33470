"""Several optimisers of one model as one: one step, one state to store, one factor on all rates."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """An optimiser and what it keeps.

    Attributes:
        optimizer: Of some of the parameters.
        moments: Names of the tensors that it keeps for a parameter, each of its shape and dtype.
        counted: Whether it keeps the number of steps of a parameter, "step", a float32 scalar, too.
    """

    optimizer: torch.optim.Optimizer
    moments: tuple[str, ...] = ()
    counted: bool = False


class Joined(torch.optim.Optimizer):
    """Optimisers that share no parameter, as one of torch's; groups, state and numbers are those of all, in order.

    A checkpoint of one part alone is that of the part.

    Args:
        parts: At least one.
    """

    def __init__(self, parts: Sequence[Part]):
        self.parts = tuple(parts)
        super().__init__([group for part in parts for group in part.optimizer.param_groups], {})
        self._rates = [group["lr"] for group in self.param_groups]
        self._share()

    def _share(self) -> None:
        """Let the parts work on the groups and the state that are stored."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.optimizer.state = self.state
            part.optimizer.param_groups = [next(groups) for _ in part.optimizer.param_groups]

    def set_rates(self, factor: float) -> None:
        """Set the learning rate of each group to what it was at first times a factor."""
        for group, rate in zip(self.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Do one step of each part.

        Raises:
            ValueError: There is a closure, of which each part would want its own gradients.
        """
        if closure is not None:
            raise ValueError("closure: several optimisers do their step from one gradient: call backward before")
        for part in self.parts:
            part.optimizer.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put what `state_dict` has returned into all parts."""
        super().load_state_dict(state_dict)
        self._share()

    def kept(self) -> dict[int, dict[str, Tensor]]:
        """Return what is kept for each parameter, by its number: tensors of the names, shapes and dtypes it has."""
        found: list[dict[str, Tensor]] = []
        for part in self.parts:
            count = {"step": torch.zeros(())} if part.counted else {}
            for parameter in (p for group in part.optimizer.param_groups for p in group["params"]):
                found.append(count | {name: parameter.detach() for name in part.moments})
        return dict(enumerate(found))
