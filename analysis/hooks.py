"""Forward hooks for an onlooker: which calls are the model's own, and taking the hooks away whatever happens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle


@contextmanager
def removed(handles: list[RemovableHandle]) -> Iterator[None]:
    """Take the hooks away on leaving the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_forward() -> bool:
    """Return whether a call is of a forward pass: not of backward, of a transform or of a compiler's trace."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() == -1 and torch._C._functorch.peek_interpreter_stack() is None  # pyright: ignore


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    """Return an argument of a call, by position or name."""
    return args[position] if position < len(args) else kwargs[name]


def never_called(what: str) -> str:
    """Return the message for hooks that were not reached."""
    return (
        f"nothing was recorded: inside the block the hooks of {what} were never reached. Call the model there; if "
        "it is compiled it may skip hooks: analyse the eager one"
    )
