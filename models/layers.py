"""The layers that recursive reasoners are made of: truncated-normal weights, Linear, Embedding, SwiGLU.

Weights keep their own dtype and are cast to that of the activations at each call, as in the code of HRM and TRM.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loopgrad.models.functional import gated_silu


def truncated_normal(shape: tuple[int, ...], std: float, generator: torch.Generator) -> Tensor:
    """Draw from a normal cut at two of its own standard deviations and rescaled so that `std` is that of the result.

    `torch.nn.init.trunc_normal_` leaves out the rescaling and returns 0.88 std (JAX and the published models do not).

    Args:
        shape: Shape of the result.
        std: Standard deviation of the result; 0 gives zeros.
        generator: Source of randomness, on the CPU.

    Returns:
        float32 tensor on the CPU, all entries within 2.2737 std.

    Example:
        >>> import torch
        >>> from loopgrad.models import truncated_normal
        >>> w = truncated_normal((100_000,), std=0.5, generator=torch.Generator().manual_seed(0))
        >>> round(w.std().item(), 2)
        0.5
    """
    cut = 2.0
    mass = math.erf(cut / math.sqrt(2))  # probability of |u| < cut
    density = math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi)
    scale = std / math.sqrt(1 - 2 * cut * density / mass)  # variance of the cut normal, in closed form
    u = torch.empty(shape, device="cpu", dtype=torch.float32).uniform_(-mass, mass, generator=generator)
    return (u.erfinv_() * (math.sqrt(2) * scale)).clamp_(-cut * scale, cut * scale)


class OneLine(nn.Module):
    """A module that prints on one line: its sizes, and not the parts that follow from them."""

    def __repr__(self) -> str:
        """Return the class and its sizes."""
        return f"{type(self).__name__}({self.extra_repr()})"


class Linear(nn.Module):
    """y = x W^T + b, with W cast to the dtype of x.

    W is drawn from a truncated normal of std 1/sqrt(in_features) (LeCun); b is zero.

    Args:
        in_features: Size of the last axis of x.
        out_features: Size of the last axis of y.
        generator: Source of the initial weights.
        bias: Whether there is a b.
    """

    def __init__(self, in_features: int, out_features: int, generator: torch.Generator, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(truncated_normal((out_features, in_features), in_features**-0.5, generator))
        self.bias = nn.Parameter(torch.zeros(out_features, device="cpu")) if bias else None

    def extra_repr(self) -> str:
        """Return the sizes."""
        out_features, in_features = self.weight.shape
        return f"{in_features=}, {out_features=}, bias={self.bias is not None}"

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def split(self, x: Tensor, sizes: list[int]) -> list[Tensor]:
        """Return forward(x) split along the last axis, as tensors with memory of their own.

        Views of one product would each keep all of it alive for backward.
        """
        x = x.contiguous()  # once: each product would make and keep its own copy
        return [F.linear(x, rows) for rows in self.weight.to(x.dtype).split(sizes)]


class Embedding(nn.Module):
    """A table of vectors, looked up by integer ids.

    Args:
        num_embeddings: Number of rows.
        size: Length of a row.
        std: Standard deviation of the initial (truncated normal) rows; 0 for zeros.
        generator: Source of the initial rows.

    Attributes:
        sparse: Whether the gradient of the table is sparse, with the rows that were read alone; False at first.
    """

    sparse: bool = False

    def __init__(self, num_embeddings: int, size: int, std: float, generator: torch.Generator):
        super().__init__()
        self.weight = nn.Parameter(truncated_normal((num_embeddings, size), std, generator))

    def extra_repr(self) -> str:
        """Return the sizes."""
        return "num_embeddings={}, size={}".format(*self.weight.shape)

    def forward(self, ids: Tensor) -> Tensor:
        """Map integer ids (...) to rows (..., size)."""
        return F.embedding(ids, self.weight, sparse=self.sparse)


def swiglu_inner_size(size: int, expansion: float) -> int:
    """Return the inner width of a SwiGLU: round(2/3 expansion size), rounded up to a multiple of 256.

    Example:
        >>> from loopgrad.models.layers import swiglu_inner_size
        >>> swiglu_inner_size(512, 4), swiglu_inner_size(128, 4)
        (1536, 512)
    """
    return -(-round(expansion * size * 2 / 3) // 256) * 256


class SwiGLU(OneLine):
    """y = W_down (silu(W_gate x) * W_up x), no biases; W_gate and W_up are the halves of one weight.

    Args:
        size: Size of the last axis of x and y.
        expansion: Sets the inner width, see `swiglu_inner_size`.
        generator: Source of the initial weights.

    Reference:
        Shazeer 2020, arXiv 2002.05202.
    """

    def __init__(self, size: int, expansion: float, generator: torch.Generator):
        super().__init__()
        self.inner_size = swiglu_inner_size(size, expansion)
        self.gate_up = Linear(size, 2 * self.inner_size, generator)
        self.down = Linear(self.inner_size, size, generator)

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"size={self.down.weight.shape[0]}, inner_size={self.inner_size}"

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., size) to (..., size)."""
        gate, up = self.gate_up.split(x, [self.inner_size, self.inner_size])  # each (..., inner)
        return self.down(gated_silu(gate, up))
