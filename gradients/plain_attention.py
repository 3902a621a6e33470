"""Attention by operators that can be differentiated forward and twice, laid out as the usual kernels lay it out."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from loopgrad.gradients.untouched import Mode


class PlainAttention(Mode):
    """Within the block, attention of `torch.nn.functional` runs as products and a softmax.

    The fused kernels have no forward-mode rules and no second derivatives. Another choice of kernel would have to be
    made for the whole process; this one holds for the calls of this thread alone. Values differ from a fused kernel's
    by rounding. The strides are those of the kernel that would have run, for cells that `view` the result.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the call, attention in the plain way."""
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is functional.multi_head_attention_forward and not kwargs.get("need_weights", True):
            # asked for its weights it takes the plain way by itself
            return func(*args, **{**kwargs, "need_weights": True})[0], None
        return func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # this operator would add it as zeros and ones
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
    found = torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]
    # a fused kernel lays its result out as the query; dropout and a mask that is learnt have no fused kernel on CPU
    on_cpu, learnt = query.device.type == "cpu", attn_mask is not None and attn_mask.requires_grad
    fused = query.dim() == 4 and query.shape[-1] == value.shape[-1] and not (on_cpu and (learnt or dropout_p))
    if not fused:
        return found
    order = sorted(range(4), key=query.stride, reverse=True)
    return found.permute(order).contiguous().permute([order.index(i) for i in range(4)])
