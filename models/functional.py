"""RMS normalisation and the gated SiLU with hand-written derivatives, which keep fewer tensors for backward.

Autograd's own derivatives keep the input and the output of the first and three products of the second; here only what
the neighbouring matrix products keep anyway is kept, and the rest is recomputed pointwise.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, dim: int = -1, eps: float = 1e-5) -> Tensor:
    """Divide by the root mean square along `dim`, without a gain: y = x / sqrt(mean(x^2) + eps).

    The mean is taken in float32 or wider, whatever the dtype of x. Keeps y and one number per row for backward: since
    x = y / r, dx = r (g - y mean(g y)). Second derivatives, forward-mode and vmap are right too.

    Args:
        x: Any shape.
        dim: The axis that is normalised.
        eps: Added to the mean square, in units of x squared.

    Returns:
        y, of the shape and dtype of x.

    Not recommended when:
        Rows may be exactly zero and their gradient matters (it is then 1/sqrt(eps) times g).
    Reference:
        Zhang and Sennrich 2019, arXiv 1910.07467.

    Example:
        >>> import torch
        >>> from loopgrad.models import rms_norm
        >>> rms_norm(torch.tensor([3.0, 4.0]))
        tensor([0.8485, 1.1314])
    """
    if torch.compiler.is_compiling():  # torch.compile cannot trace a jvp, and decides by itself what to keep
        return _RMSNorm.forward(x, dim, eps)[0]
    return _RMSNorm.apply(x, dim, eps)[0]


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up, the gate of SwiGLU, keeping only its two arguments, of one shape, for backward.

    Reference:
        Shazeer 2020, arXiv 2002.05202.

    Example:
        >>> import torch
        >>> from loopgrad.models.functional import gated_silu
        >>> gated_silu(torch.zeros(2), torch.ones(2))
        tensor([0., 0.])
    """
    if torch.compiler.is_compiling():
        return F.silu(gate) * up
    return _GatedSiLU.apply(gate, up)


class _RMSNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dim: int, eps: float) -> tuple[Tensor, Tensor]:
        wide = _widen(x)
        inverse_rms = torch.rsqrt(wide.square().mean(dim, keepdim=True) + eps)
        return (wide * inverse_rms).to(x.dtype), inverse_rms

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.dim, ctx.size = inputs[1], inputs[0].shape[inputs[1]]
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, None, None]:
        grad, grad_inverse_rms = grad_outputs
        y, inverse_rms = ctx.saved_tensors
        narrow = y.dtype
        y, total = _widen(y), None
        if grad is not None:
            grad = _widen(grad)
            total = torch.addcmul(grad, y, (grad * y).mean(ctx.dim, keepdim=True), value=-1) * inverse_rms
        if grad_inverse_rms is not None:  # a second derivative comes this way: d(1/rms)/dx = -x / (n rms^3)
            through = -grad_inverse_rms * inverse_rms.square() * y / ctx.size
            total = through if total is None else total + through
        return None if total is None else total.to(narrow), None, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> tuple[Tensor, Tensor]:
        tangent = grad_inputs[0]
        y, inverse_rms = ctx.saved_tensors
        narrow = y.dtype
        y, tangent = _widen(y), _widen(tangent)
        along = (y * tangent).mean(ctx.dim, keepdim=True)
        return ((tangent - y * along) * inverse_rms).to(narrow), -inverse_rms.square() * along


class _GatedSiLU(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate).mul_(up)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grad_outputs
        gate, up = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for, and the fused kernel has none
            return grad * up * _silu_slope(gate), grad * F.silu(gate)
        return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor) -> Tensor:
        gate_tangent, up_tangent = grad_inputs
        gate, up = ctx.saved_tensors
        return gate_tangent * up * _silu_slope(gate) + up_tangent * F.silu(gate)


def _silu_slope(gate: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(gate)
    return sigmoid * (1 + gate * (1 - sigmoid))


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
