"""A gradient of zeros for tensors that a loss may have no part in: data-parallel training waits for every one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients.agreement import is_split


def reaching(tensors: Sequence[Tensor], sources: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return tensors as they are, in whose graph the sources have a part with the gradient zero."""
    return _Reaching.apply(len(tensors), *tensors, *sources)  # pyright: ignore[reportReturnType]


class _Reaching(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.sources = [t.detach() if is_split(t) else (t.shape, t.dtype, t.device) for t in tensors[count:]]
        return tuple(t.detach() for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        return None, *gradients, *map(_zeros, ctx.sources)


def _zeros(like: Any) -> Tensor:
    if isinstance(like, Tensor):
        return torch.zeros_like(like)
    shape, dtype, device = like
    return torch.zeros(shape, dtype=dtype, device=device)
