"""Multi-head self-attention with rotary positions, as HRM and TRM use it, or causal."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loopgrad.models.layers import Linear, OneLine

Tables = tuple[Tensor, Tensor]


class Rotary(nn.Module):
    """Rotary positions: component pair (i, i + d/2) of a query or key at position p turns by p * base^(-2i/d).

    The scalar product of a turned query and a turned key depends on their positions only through the difference.
    Calling it returns (cos, sin), each (num_positions, d/2).

    Args:
        head_dim: d, the size of a head; even.
        num_positions: Length of the tables kept ready. Longer ones are computed when asked for.
        base: Sets the slowest turn.

    Raises:
        ValueError: head_dim is odd.

    Reference:
        Su et al. 2021, arXiv 2104.09864.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, num_positions: int = 0, base: float = 10000.0):
        super().__init__()
        if head_dim % 2:
            raise ValueError(
                f"rotary positions turn pairs of components, and a head of size {head_dim} is odd: "
                "choose num_heads so that hidden_size / num_heads is even, or positions='none'"
            )
        self.head_dim, self.base = head_dim, base
        cos, sin = self._tables(num_positions, torch.device("cpu"))
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"head_dim={self.head_dim}, base={self.base:g}"

    def forward(self, num_positions: int) -> Tables:
        """Return the tables of the first `num_positions` positions."""
        if num_positions <= self.cos.shape[0]:
            return self.cos[:num_positions], self.sin[:num_positions]
        cos, sin = self._tables(num_positions, self.cos.device)
        return cos.to(self.cos.dtype), sin.to(self.sin.dtype)

    def _tables(self, num_positions: int, device: torch.device) -> Tables:
        # float32 throughout: the published weights were trained with angles rounded so
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=device) / self.head_dim
        position = torch.arange(num_positions, dtype=torch.float32, device=device)
        angle = torch.outer(position, 1.0 / self.base**exponent)
        return angle.cos(), angle.sin()


def rotate(x: Tensor, tables: Tables) -> Tensor:
    """Turn the component pairs of x, (batch, positions, heads, head_dim), by the angles that `Rotary` has returned."""
    cos, sin = (table.unsqueeze(-2) for table in tables)  # (positions, 1, head_dim/2)
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Attention(OneLine):
    """softmax(Q K^T / sqrt(d)) V per head, every position attending to every other; no biases.

    Args:
        hidden_size: Size of the last axis of the input and the output.
        num_heads: Number of heads; divides hidden_size.
        generator: Source of the initial weights.
        causal: Whether a position attends to itself and to those before it alone.

    Raises:
        ValueError: num_heads does not divide hidden_size.

    Not recommended when:
        Forward-mode or second derivatives are needed: torch's fused kernel has none and raises. Run
        those under torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH).
    Reference:
        Vaswani et al. 2017, arXiv 1706.03762.
    """

    def __init__(self, hidden_size: int, num_heads: int, generator: torch.Generator, causal: bool = False):
        super().__init__()
        if num_heads < 1 or hidden_size % num_heads:
            raise ValueError(f"num_heads must divide hidden_size, got num_heads={num_heads}, hidden_size={hidden_size}")
        self.num_heads, self.causal = num_heads, causal
        self.qkv = Linear(hidden_size, 3 * hidden_size, generator)
        self.out = Linear(hidden_size, hidden_size, generator)

    def extra_repr(self) -> str:
        """Return the sizes."""
        causal = ", causal=True" if self.causal else ""
        return f"hidden_size={self.out.weight.shape[0]}, num_heads={self.num_heads}{causal}"

    def forward(self, x: Tensor, tables: Tables | None = None, mask: Tensor | None = None) -> Tensor:
        """Map (batch, positions, hidden_size) to the same shape.

        Args:
            x: The positions.
            tables: Turn queries and keys.
            mask: (batch, positions) bool, which positions are attended to; None for all.
        """
        size = x.shape[-1]
        qk, v = self.qkv.split(x, [2 * size, size])
        qk = qk.unflatten(-1, (2 * self.num_heads, -1))  # (batch, positions, 2 heads, head_dim)
        v = v.unflatten(-1, (self.num_heads, -1))
        if tables is not None:
            qk = rotate(qk, tables)
        q, k = qk.chunk(2, dim=-2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (batch, heads, positions, head_dim)
        attended = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attended, is_causal=self.causal).transpose(1, 2)
        return self.out(mixed.flatten(-2))
