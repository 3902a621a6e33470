"""Running a module on copies of its tensors, without leaving a trace in them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

Held = Sequence[tuple[nn.Module, Mapping[str, torch.Tensor | None]]]


@contextmanager
def stand_ins(held: Held, copy: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[dict[int, torch.Tensor]]:
    """Let one copy of each tensor stand in all its places inside the block; yield copies by the id of the original."""
    places = [(owner, name, tensor) for owner, own in held for name, tensor in own.items() if tensor is not None]
    copies: dict[int, torch.Tensor] = {}
    try:
        for owner, name, tensor in places:
            if id(tensor) not in copies:
                copies[id(tensor)] = copy(tensor)
            setattr(owner, name, copies[id(tensor)])  # setattr: recurrent modules keep a second list in step with it
        yield copies
    finally:
        for owner, name, tensor in places:
            setattr(owner, name, tensor)


@contextmanager
def preserved_buffers(*modules: nn.Module) -> Iterator[None]:
    """Let the modules read and write copies of their buffers inside the block, so that the originals do not move.

    Not recommended when:
        Another thread uses the modules at the same time.
    """
    held = [(owner, owner._buffers) for module in modules for owner in module.modules()]
    with stand_ins(held, lambda buffer: buffer.detach().clone()):
        yield
