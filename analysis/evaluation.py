"""Running a cell as analyses do: in evaluation mode, on copies of its tensors, with nothing of it left changed."""

import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from loopgrad.gradients.plain_attention import PlainAttention
from loopgrad.gradients.substituted import Substituted
from loopgrad.gradients.untouched import Untouched

# torch has one level of forward differentiation for the whole process, and a module one flag for all threads
_FORWARD, _FLAGS = threading.Lock(), threading.RLock()


@contextmanager
def in_evaluation(
    cell: nn.Module, device: str, old: Sequence[Tensor], new: Sequence[Tensor], with_graph: bool
) -> Iterator[None]:
    """Evaluate the cell inside the block in evaluation mode, without autocast, with `new` in place of `old` tensors.

    Nothing is written into the module but the flags of submodules that are in training mode, and these are put back.
    Analyses in several threads take turns at such a module; a thread that trains it meanwhile sees its flags.
    """
    training = any(module.training for module in cell.modules())
    with _FLAGS if training else nullcontext():
        noted = Untouched(cell)
        try:
            try:
                for module in cell.modules():
                    if module.training:
                        module.training = False
                with (
                    torch.inference_mode(False),
                    torch.set_grad_enabled(with_graph),
                    torch.autocast(device, enabled=False),
                    Substituted(old, new),
                ):
                    yield
            finally:
                noted.put_back()
        finally:  # once more, where an interruption has fallen into that
            noted.put_back()


@contextmanager
def differentiating_forward() -> Iterator[None]:
    """Let the block differentiate forward: operators that have the rules for it, one thread at a time."""
    _load_rules()
    with _FORWARD:
        try:
            try:
                with PlainAttention(), forward_ad.dual_level():
                    yield
            finally:
                _leave_level()
        finally:
            _leave_level()


def _leave_level() -> None:
    """Leave a level of forward differentiation that an interruption may have left entered, in part or in whole."""
    try:
        torch._C._exit_dual_level(level=0)
    except RuntimeError:  # there is none, as should be
        pass
    forward_ad._current_level = -1


def _load_rules() -> None:
    """Load torch's rules for forward differentiation, which it does itself at first use, and then warns of itself."""
    name = "torch._decomp.decompositions_for_jvp"
    if name not in sys.modules:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch.jit.script.*", DeprecationWarning)
            __import__(name)
