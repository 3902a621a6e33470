"""Whether a module can be called as a cell, and the wrapper that would make one of it."""

import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

# forward of a class -> whether it is refused; functions are held weakly, and with them their classes
_REFUSED: WeakKeyDictionary[Callable[..., Any], bool] = WeakKeyDictionary()


def check_cell(cell: Any, name: str = "cell") -> None:
    """Raise TypeError, with the wrapper that helps, if `cell` certainly cannot be called as cell(state, inputs, step).

    A module whose signature is not known, or whose call is not that of its forward, is given the benefit of the doubt.
    """
    if not isinstance(cell, nn.Module):
        raise TypeError(
            f"{name} must be an nn.Module called as cell(state, inputs, step), got {type(cell).__name__}: "
            "wrap a plain map fn(state, inputs) as Stationary(fn, parameters=...)"
        )
    if torch.compiler.is_compiling():
        return
    cell = getattr(cell, "_orig_mod", cell)  # what torch.compile has wrapped
    if type(cell).__call__ is not nn.Module.__call__ or cell._forward_pre_hooks:
        return
    if "forward" in vars(cell):
        refused = not _takes_three(cell.forward)
    else:
        forward = type(cell).forward
        try:
            refused = _REFUSED.get(forward)
            if refused is None:
                # no layer of torch.nn takes the number of an update
                of_torch = str(getattr(forward, "__module__", "")).startswith("torch.nn.modules.")
                refused = _REFUSED[forward] = of_torch or not _takes_three(cell.forward)
        except TypeError:  # neither hashable nor weakly held
            refused = not _takes_three(cell.forward)
    if refused:
        raise TypeError(f"{name} is called as cell(state, inputs, step), but {_remedy(cell)}")


def _takes_three(forward: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(None, None, 0)
    except TypeError:
        return False
    return True


def _remedy(cell: nn.Module) -> str:
    kind, signature = type(cell).__name__, inspect.signature(cell.forward)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    said = f"{kind} takes {signature.replace(parameters=bare, return_annotation=signature.empty)}"
    own = kind.lower().removesuffix("cell")
    if isinstance(cell, nn.RNNCellBase):
        return (
            f"{said}, its state last. Wrap it: Stationary(lambda z, x: {own}(x, z), parameters={own}). Where update t "
            f"reads inputs[:, t], write a module whose forward(self, state, inputs, step) returns "
            f"{own}(inputs[:, step], state)"
        )
    if isinstance(cell, nn.RNNBase):
        return (
            f"{said} and runs the recursion itself. Take nn.{kind}Cell, in a module whose "
            f"forward(self, state, inputs, step) returns {own}(inputs[:, step], state)"
        )
    needed = [p for p in bare if p.default is p.empty]
    call = "net(z, x)" if len(needed) == 2 else "net(z + x)"
    return (
        f"{said}. Wrap it as a map of state and inputs, such as Stationary(lambda z, x: {call}, parameters=net), or "
        "give its forward the arguments (state, inputs, step)"
    )
