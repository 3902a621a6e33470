"""Where torch.compile meets a recursion: updates of the cell are compiled, and what goes around them is not.

Traced whole, a recursion would be unrolled, and compiled anew for each number of updates; what an estimator notes from
update to update would be compiled anew at each of them.
"""

import inspect
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback, set_eval_frame
from torch.nn.parallel import DistributedDataParallel

from loopgrad.gradients.invertible import undoing


def is_compiling() -> bool:
    """Return whether a call is one of code that torch.compile traces, or has traced up to that call."""
    if torch.compiler.is_exporting():
        return False
    return torch.compiler.is_compiling() or callable(get_eval_frame_callback())


@partial(torch._disable_dynamo, recursive=False)
def apart(estimator: Any, cell: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Return estimator(cell, ...) for code that is being compiled: a break in its graph.

    The cell is compiled by itself, with the compiler of that code, in the forward and in the backward pass.
    """
    from torch._dynamo.eval_frame import innermost_backend, skip_code

    skip_code(type(estimator).__call__.__code__)  # or each kind of estimator would be a compilation of this one line
    callback = get_eval_frame_callback()
    set_eval_frame(None)
    try:
        if callable(callback) and estimator.compiles:
            cell = compiled(cell, innermost_backend(callback))
        return estimator(cell, *args, **kwargs)
    finally:
        set_eval_frame(callback)


def compiled(cell: nn.Module, backend: Any) -> nn.Module:
    """Return a cell whose updates are compiled by a backend; nothing is written into the one that is given.

    An `Invertible` cell stays as it is around what it wraps: an update and what undoes it must round alike.
    """
    if isinstance(cell, DistributedDataParallel):  # its hooks are no part of an update
        return cell
    own = undoing(cell)
    if own is not None:
        return own.with_inner(partial(compiled, backend=backend))
    return torch.compile(cell, backend=backend, **for_updates())  # pyright: ignore[reportReturnType]


def for_updates() -> dict[str, Any]:
    """Return the arguments of torch.compile that the updates of a recursion ask for.

    They come with and without autograd, with states of which no, some or all leaves require grad, and in as many kinds
    as a cycle has; each is compiled once, which may be more than the 8 that torch allows a function by itself.
    """
    known = "recompile_limit" in inspect.signature(torch.compile).parameters
    return {"recompile_limit": 32} if known else {}


def is_compiled(cell: nn.Module) -> bool:
    """Return whether torch.compile is around a module or one inside of it."""
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in cell.modules())


def refuse_compiled(cell: nn.Module, owner: str) -> None:
    """Raise TypeError for a cell with compiled code, where an estimator puts other tensors in place of weights."""
    if is_compiled(cell):
        raise TypeError(
            f"{owner} runs the cell with tangents beside its weights, or with other weights, for which compiled code "
            "would be compiled again and again: leave the cell and its nets uncompiled (torch.compile of the model "
            "around it may stay), or use CheckpointedBPTT()"
        )
