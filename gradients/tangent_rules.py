"""Calls whose derivative torch takes forward in another way than backward, made so that both agree."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from loopgrad.gradients.plain_attention import PlainAttention


class TangentRules(PlainAttention):
    """Within the block a tangent ends where a gradient would, and attention runs as in `PlainAttention`.

    Forward AD goes on under `torch.no_grad()`, and through the row of an embedding that its `padding_idx` names, of
    which backward leaves the gradient out.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the call, by the rule of backward."""
        if func is torch._C._set_grad_enabled:
            torch._C._set_fwd_grad_enabled(args[0])
        found = super().__torch_function__(func, types, args, kwargs)
        if func is functional.embedding:
            return _without_padding(found, *args, **(kwargs or {}))
        return found


def _without_padding(
    found: Tensor, input: Tensor, weight: Tensor, padding_idx: int | None = None, *_: Any, **__: Any
) -> Tensor:
    if padding_idx is None:
        return found
    return torch.where((input == padding_idx % len(weight)).unsqueeze(-1), found.detach(), found)
