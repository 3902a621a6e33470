"""A cell made of a plain map, and what such cells close over."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class Stationary(nn.Module):
    """A cell made of a plain map: z_{t+1} = fn(z_t, inputs), the same at every step.

    Args:
        fn: Callable fn(state, inputs) -> state.
        parameters: What `fn` closes over and wants gradients for: a module, several modules, or tensors that require
            grad (parameters or not). What is left out gets its gradient all the same, if the first updates read it.

    Raises:
        TypeError: `fn` cannot be called, or `parameters` holds something that is neither a module nor a tensor.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import BPTT, Stationary
        >>> w = torch.tensor([0.5], requires_grad=True)
        >>> cell = Stationary(lambda z, x: w * z + x, parameters=[w])
        >>> rollout = BPTT()(cell, torch.zeros(2, 1), torch.ones(2, 1), num_steps=2)
        >>> torch.autograd.grad(rollout.state.sum(), w)[0]
        tensor([2.])
    """

    def __init__(self, fn: Callable[[Any, Any], Any], parameters: nn.Module | Iterable[torch.Tensor | nn.Module] = ()):
        super().__init__()
        if not callable(fn):
            raise TypeError(f"Stationary(fn=...) must be callable as fn(state, inputs), got {type(fn).__name__}")
        given = [parameters] if isinstance(parameters, nn.Module | torch.Tensor) else list(parameters)
        for item in given:
            if not isinstance(item, nn.Module | torch.Tensor):
                raise TypeError(
                    f"Stationary(parameters=...) takes modules or tensors, got {type(item).__name__}: "
                    "pass the module, or module.parameters()"
                )
        self.fn = fn
        self.modules_closed_over = nn.ModuleList([item for item in given if isinstance(item, nn.Module)])
        owned = {id(p) for p in self.parameters()}
        loose = [item for item in given if isinstance(item, torch.Tensor) and id(item) not in owned]
        self.loose_parameters = nn.ParameterList([item for item in loose if isinstance(item, nn.Parameter)])
        # plain tensors cannot be registered; estimators that recompute ask for them here
        self.closed_over: tuple[torch.Tensor, ...] = tuple(loose)

    def __repr__(self) -> str:
        """Return the name of the map and how many numbers it wants gradients for."""
        name = getattr(self.fn, "__name__", type(self.fn).__name__)
        count = sum(tensor.numel() for tensor in (*self.parameters(), *self.closed_over))
        return f"Stationary({name}, {count:,} parameters)"

    def forward(self, state: Any, inputs: Any, step: int) -> Any:
        """Apply the map; `step` is not used."""
        return self.fn(state, inputs)


def closed_over(cell: nn.Module) -> list[torch.Tensor]:
    """Return the tensors that the `Stationary` modules of a cell close over and cannot register."""
    return [tensor for module in cell.modules() if isinstance(module, Stationary) for tensor in module.closed_over]
