"""Forward differentiation with torch: in one thread at a time, and with its levels left as they were."""

import importlib
import warnings
from contextlib import suppress
from functools import cache
from threading import RLock
from typing import Any

import torch
from torch._C._functorch import get_dynamic_layer_stack_depth, pop_dynamic_layer_stack_and_undo_to_depth
from torch._functorch import eager_transforms
from torch.autograd import forward_ad

from loopgrad.gradients.untouched import finish_generators

# torch counts the levels of dual tensors for the whole process: threads take turns
TURN = RLock()


class ForwardLevels:
    """Within the block tangents may be carried; levels that an interruption has left open are closed at its end."""

    def __enter__(self) -> None:
        """Note the levels that are open."""
        _load_rules()
        self._depth, self._level = get_dynamic_layer_stack_depth(), forward_ad._current_level
        self._nesting, self._enabled = eager_transforms.JVP_NESTING, torch._C._is_fwd_grad_enabled()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Close what is open."""
        if error is None:
            return
        finish_generators(error)
        if get_dynamic_layer_stack_depth() > self._depth:
            pop_dynamic_layer_stack_and_undo_to_depth(self._depth)
        eager_transforms.JVP_NESTING = self._nesting
        torch._C._set_fwd_grad_enabled(self._enabled)
        if self._level < 0:  # torch opens one dual level at most, and notes it twice: here and in C++
            with suppress(RuntimeError):  # it is open already
                torch._C._enter_dual_level()
            torch._C._exit_dual_level(level=0)
            forward_ad._current_level = -1


@cache
def _load_rules() -> None:
    """Import torch's decompositions, which warn of a deprecation of their own (torch 2.13) at their first use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")
