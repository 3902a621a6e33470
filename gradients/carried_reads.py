"""How torch calls read the weights of a cell, and calls that add a low-rank perturbation to what they read."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from loopgrad.gradients.carried_products import CELLS, Factors, carried_cell, carried_linear
from loopgrad.gradients.untouched import Mode


class Uses(Mode):
    """Notes how torch calls are given some tensors.

    Attributes:
        other: Numbers of those that are given to another call than as the weight of F.linear or of a recurrent cell.
        linear: Numbers of those that are given to it.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        super().__init__()
        self._numbers = {id(tensor): number for number, tensor in enumerate(tensors)}
        self.linear: set[int] = set()
        self.other: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the call, and note it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") == "__get__":  # a shape, a dtype
            self._note([result], self.other)
            return result
        if func is F.linear:
            x, weight, bias = _of_linear(*args, **kwargs)
            self._note([weight], self.linear)
            self._note([x, bias], self.other)
        elif _is_cell(func):
            x, state, w_ih, w_hh, *biases = _of_cell(*args, **kwargs)
            self._note([w_ih, w_hh], self.linear)
            self._note([x, state, *biases], self.other)
        else:
            self._note([*args, *kwargs.values()], self.other)
        return result

    def _note(self, values: Sequence[Any], where: set[int]) -> None:
        for value in values:
            if isinstance(value, list | tuple):
                self._note(value, where)
            elif id(value) in self._numbers:
                where.add(self._numbers[id(value)])


class Carrying(Mode):
    """Has F.linear and recurrent cells read some weights as W + s A B^T, without forming it.

    Args:
        tensors: What is read.
        factors: Of some of them, by number.
        by: s.
        together: Whether calls are made within torch.vmap over perturbations.
    """

    def __init__(self, tensors: Sequence[Tensor], factors: dict[int, Factors], by: float, together: bool = False):
        super().__init__()
        self._factors = {id(tensors[number]): it for number, it in factors.items()}
        self._by, self._together = by, together

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the call."""
        kwargs = kwargs or {}
        if func is F.linear:
            x, weight, bias = _of_linear(*args, **kwargs)
            factors = self._factors.get(id(weight))
            if factors is not None:
                return carried_linear(self._by, self._together, factors, x, weight, bias)
        elif _is_cell(func):
            x, state, *weights = _of_cell(*args, **kwargs)
            found = [self._factors.get(id(weight)) for weight in weights[:2]]
            if self._together or any(it is not None for it in found):  # torch.vmap has no rule for the call itself
                states = list(state) if isinstance(state, list | tuple) else [state]
                return carried_cell(func, self._by, self._together, found, x, states, weights)
        return func(*args, **kwargs)


def _is_cell(func: Any) -> bool:
    return getattr(func, "__name__", "").endswith("_cell") and func in CELLS


def _of_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


def _of_cell(input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> tuple[Any, ...]:
    return input, hx, w_ih, w_hh, b_ih, b_hh
