"""Forward hooks for an onlooker: which calls are the model's own, and taking the hooks away whatever happens."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from loopgrad.gradients.checks import is_int
from loopgrad.gradients.rows_going import is_tried


@contextmanager
def removed(handles: list[RemovableHandle]) -> Iterator[None]:
    """Take the hooks away on leaving the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_forward() -> bool:
    """Return whether a call is of a forward pass: not tried, of backward, of a transform or of a compiler's trace."""
    if torch.compiler.is_compiling() or is_tried():
        return False
    return torch._C._current_graph_task_id() == -1 and torch._C._functorch.peek_interpreter_stack() is None  # pyright: ignore


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    """Return an argument of a call, by position or name."""
    return args[position] if position < len(args) else kwargs[name]


class Arguments:
    """The arguments of a cell's calls, by position or by the names that its own forward gives them.

    Attributes:
        names: Of the first three arguments.
    """

    def __init__(self, cell: nn.Module):
        bare = cell._modules.get("_orig_mod") or cell  # of a compiled cell, which runs its hooks outside
        try:
            given = list(inspect.signature(bare.forward).parameters.values())[:3]
        except (TypeError, ValueError):  # a forward that is not Python's
            given = []
        self.names, self._kind = [it.name for it in given], type(bare).__name__
        self._defaults = [it.default for it in given]

    def get(self, args: tuple[Any, ...], kwargs: dict[str, Any], position: int) -> Any:
        """Return one of the three arguments of a call."""
        if position < len(args) or position >= len(self.names):
            return args[position]
        return kwargs.get(self.names[position], self._defaults[position])

    def step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the number of the update.

        Raises:
            TypeError: It is no number, so that the module is not called as a cell.
        """
        step = self.get(args, kwargs, 2)
        if is_int(step) or isinstance(step, torch.Tensor) and step.numel() == 1:
            return step
        name = f", {self.names[2]}," if len(self.names) > 2 else ""
        raise TypeError(
            f"a {self._kind} is not called as cell(state, inputs, step): its third argument{name} is a "
            f"{type(step).__name__}, not the number of an update. Name the cell, CellSite('...'), or read outputs of "
            "modules by ModuleSite"
        )


def never_called(what: str) -> str:
    """Return the message for hooks that were not reached."""
    return (
        f"nothing was recorded: inside the block the hooks of {what} were never reached. Call the model there; if "
        "it is compiled it may skip hooks: analyse the eager one"
    )
