"""Whether a module can be called as a cell, and the wrapper that would make one of it."""

import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from loopgrad.gradients.wrappers import unwrapped

# forward of a class -> whether it is refused; functions are held weakly, and with them their classes
_REFUSED: WeakKeyDictionary[Callable[..., Any], bool] = WeakKeyDictionary()
RECURRENT = {"gru": (nn.GRUCell, nn.GRU), "lstm": (nn.LSTMCell, nn.LSTM), "rnn": (nn.RNNCell, nn.RNN)}


def check_cell(cell: Any, name: str = "cell") -> None:
    """Raise TypeError, with the wrapper that helps, if `cell` certainly cannot be called as cell(state, inputs, step).

    A module whose signature is not known, or whose call is not that of its forward, is given the benefit of the doubt.
    """
    if not isinstance(cell, nn.Module):
        raise TypeError(f"{name} must be an nn.Module called as cell(state, inputs, step), got {_no_module(cell)}")
    if torch.compiler.is_compiling():
        return
    cell = unwrapped(cell)
    if type(cell).__call__ is not nn.Module.__call__ or cell._forward_pre_hooks:
        return
    if "forward" in vars(cell):
        refused = not takes(cell.forward, 3)
    else:
        try:
            forward = type(cell).forward
            refused = _REFUSED.get(forward)
            if refused is None:
                # no layer of torch.nn takes the number of an update
                of_torch = str(getattr(forward, "__module__", "")).startswith("torch.nn.modules.")
                refused = _REFUSED[forward] = of_torch or not takes(cell.forward, 3)
        except (TypeError, AttributeError):  # neither hashable nor weakly held; a traced module's
            refused = not takes(cell.forward, 3)
    if refused:
        raise TypeError(f"{name} is called as cell(state, inputs, step), but {_remedy(cell)}")


def takes(fn: Callable[..., Any], count: int) -> bool:
    """Whether `fn` can be called with so many positional arguments; True where that is not known."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _no_module(cell: Any) -> str:
    kind = type(cell).__name__
    if isinstance(cell, type):
        return f"the class {cell.__name__}: pass an instance of it"
    if not callable(cell):
        return f"{kind}: the arguments are estimator(cell, state, inputs, num_steps), the cell first"
    if takes(cell, 3) and not takes(cell, 2):
        return (
            f"{kind} of three arguments: make it the forward(self, state, inputs, step) of a module, or "
            "wrap a plain map fn(state, inputs) as Stationary(fn, parameters=...)"
        )
    return f"{kind}: wrap a plain map fn(state, inputs) as Stationary(fn, parameters=...)"


def _remedy(cell: nn.Module) -> str:
    kind = type(cell).__name__
    if getattr(cell.forward, "__name__", "") == "_forward_unimplemented":
        return f"{kind} has no forward: define forward(self, state, inputs, step)"
    signature = inspect.signature(cell.forward)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    said = f"{kind} takes {signature.replace(parameters=bare, return_annotation=signature.empty)}"
    own = next((name for name, layers in RECURRENT.items() if isinstance(cell, layers)), "net")
    if isinstance(cell, nn.RNNCellBase):
        pair = "; z is the pair (h, c)" if own == "lstm" else ""
        return (
            f"{said}, its state last. Wrap it: Stationary(lambda z, x: {own}(x, z), parameters={own}){pair}. Where "
            f"update t reads inputs[:, t], write a module whose forward(self, state, inputs, step) returns "
            f"{own}(inputs[:, step], state)"
        )
    if isinstance(cell, nn.RNNBase):
        return (
            f"{said} and runs the recursion itself. Take nn.{own.upper()}Cell, in a module whose "
            f"forward(self, state, inputs, step) returns {own}(inputs[:, step], state)"
        )
    call = next((call for count, call in ((2, "net(z, x)"), (1, "net(z + x)")) if takes(cell.forward, count)), None)
    wrapped = f"Wrap it as a map of state and inputs, such as Stationary(lambda z, x: {call}, parameters=net), or give"
    return f"{said}. {wrapped if call else 'Give'} its forward the arguments (state, inputs, step)"
