"""Forward differentiation with torch: in one thread at a time, and with its levels left as they were."""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import RLock

import torch
from torch.autograd import forward_ad

# torch counts the levels of dual tensors for the whole process: threads take turns
_TURN = RLock()


@contextmanager
def forward_levels() -> Iterator[None]:
    """Within the block, tangents may be carried; a level that an interruption has left open is closed at its end."""
    _load_rules()
    with _TURN:
        depth, level = torch._C._functorch.get_dynamic_layer_stack_depth(), forward_ad._current_level
        try:
            yield
        finally:
            if torch._C._functorch.get_dynamic_layer_stack_depth() > depth:
                torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
            while forward_ad._current_level > level:
                forward_ad.exit_dual_level()


@cache
def _load_rules() -> None:
    """Import torch's decompositions, which warn of a deprecation of their own (torch 2.13) at their first use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")
