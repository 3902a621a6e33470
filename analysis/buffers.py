"""Running a module without leaving a trace in its buffers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def preserved_buffers(*modules: nn.Module) -> Iterator[None]:
    """Let the modules read and write copies of their buffers inside the block, so that the originals do not move.

    Not recommended when:
        Another thread uses the modules at the same time.
    """
    copies: dict[int, torch.Tensor] = {}
    owners = [owner for module in modules for owner in module.modules()]
    places = [(owner, name, b) for owner in owners for name, b in owner._buffers.items() if b is not None]
    try:
        for owner, name, buffer in places:
            copy = copies.setdefault(id(buffer), buffer.detach().clone())
            setattr(owner, name, copy)
        yield
    finally:
        for owner, name, buffer in places:
            setattr(owner, name, buffer)
