"""Running a cell as analyses do: in evaluation mode, on copies of its tensors, with nothing of it left changed."""

import threading
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from loopgrad.gradients.forward_levels import TURN, ForwardLevels
from loopgrad.gradients.plain_attention import PlainAttention
from loopgrad.gradients.substituted import Substituted
from loopgrad.gradients.untouched import Untouched, finish_generators

P = ParamSpec("P")
T = TypeVar("T")
# a module has one flag for all threads, and the buffers that it replaces itself: what one thread is to put back,
# another must not take for how it was
_MODULES = threading.RLock()


def in_evaluation(
    fn: Callable[[], T], cell: nn.Module, device: str, old: Sequence[Tensor], new: Sequence[Tensor], with_graph: bool
) -> T:
    """Return fn(), run with the cell in evaluation mode, without autocast, with `new` in place of `old` tensors.

    Nothing is written into the module but the flags of submodules that are in training mode, and these are put back.
    Evaluations in several threads take turns; a thread that trains the module meanwhile sees its flags.
    """

    def evaluate() -> T:
        for module in cell.modules():
            if module.training:
                module.training = False
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(with_graph),
            torch.autocast(device, enabled=False),
            Substituted(old, new),
        ):
            return fn()

    with _MODULES:
        return finally_twice(evaluate, Untouched(cell).put_back)


def differentiating_forward(fn: Callable[[], T]) -> T:
    """Return fn(), run where tensors can be differentiated forward: with operators that can, one thread at a time."""
    with TURN, ForwardLevels(), PlainAttention(), forward_ad.dual_level():
        return fn()


def pulled_back(output: Tensor, cotangent: Tensor, sources: Sequence[Any], keep: bool = False) -> Sequence[Any]:
    """Return the products with each source, a tensor or an edge of the graph; None where it has no part in the output.

    As torch.autograd.grad, which lays the modes aside for its time, and so for what backward computes again.
    """
    run = torch.autograd.graph._engine_run_backward
    return run((output,), (cotangent,), keep, False, tuple(sources), True, accumulate_grad=False)


def finally_twice(fn: Callable[[], T], put_back: Callable[[], Any]) -> T:
    """Return fn(), whatever it has left put back; and once more, where an interruption has fallen into that.

    Plain `finally` clauses: a Ctrl-C that falls into a context manager written in Python keeps it from its end.
    """
    try:
        try:
            return fn()
        except BaseException as error:
            finish_generators(error)
            raise
        finally:
            put_back()
    finally:
        put_back()


def leaving_torch_alone(fn: Callable[P, T]) -> Callable[P, T]:
    """Have a function leave torch's modes and random number generators as they were, whatever interrupts it."""

    @wraps(fn)
    def analyse(*args: P.args, **kwargs: P.kwargs) -> T:
        return _putting_back(lambda: fn(*args, **kwargs), [Untouched(), Generators()])

    return analyse


def leaving_modules_alone(fn: Callable[P, T]) -> Callable[P, T]:
    """Have a function leave the modules that it is given alone as well: their flags, and buffers that they replace."""

    @wraps(fn)
    def analyse(*args: P.args, **kwargs: P.kwargs) -> T:
        modules = [given for given in (*args, *kwargs.values()) if isinstance(given, nn.Module)]
        return _putting_back(lambda: fn(*args, **kwargs), [*map(Untouched, modules), Untouched(), Generators()])

    return analyse


def _putting_back(fn: Callable[[], T], noted: Sequence[Any]) -> T:
    def put_back() -> None:
        for it in noted:
            it.put_back()

    return finally_twice(fn, put_back)


class Generators:
    """The states of the default generators (CPU, and CUDA where it is in use), to be put back."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def put_back(self) -> None:
        """Put them back."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
