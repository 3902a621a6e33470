"""Cells that benches iterate, as a user writes them, in plain PyTorch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualCell(nn.Module):
    """z <- z + h attention(norm(z + x)); z <- z + h swiglu(norm(z)): a cell as a user writes it, in plain PyTorch.

    h is 0.1, so that the untrained recursion is not chaotic: a float32 gradient through 256 updates is then one.
    """

    def __init__(self, size: int, num_heads: int, generator: torch.Generator):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.out = nn.Linear(size, 3 * size, bias=False), nn.Linear(size, size, bias=False)
        self.gate_up, self.down = nn.Linear(size, 4 * size, bias=False), nn.Linear(2 * size, size, bias=False)
        with torch.no_grad():
            for weight in self.parameters():
                weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)

    def attention(self, z: Tensor) -> Tensor:
        """Mix positions, after a norm."""
        qkv = self.qkv(F.rms_norm(z, z.shape[-1:])).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.transpose(1, 3).unbind(2)  # (batch, heads, positions, head_dim)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))

    def swiglu(self, z: Tensor) -> Tensor:
        """Mix features, after a norm."""
        gate, up = self.gate_up(F.rms_norm(z, z.shape[-1:])).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)

    def forward(self, z: Tensor, x: Tensor, step: int) -> Tensor:
        """Map (batch, positions, size) to the same shape."""
        z = z + 0.1 * self.attention(z + x)
        return z + 0.1 * self.swiglu(z)


class BranchCell(ResidualCell):
    """The branch of a residual block that reads norm(z + x): attention and SwiGLU, without the skip."""

    def forward(self, z: Tensor, x: Tensor, step: int) -> Tensor:
        """Map (batch, positions, size) to the same shape."""
        read = z + x
        mixed = 0.5 * self.attention(read)
        return mixed + 0.5 * self.swiglu(read + mixed)


class SiluCell(nn.Module):
    """z <- rms_norm(z + gain * W2 silu(W1 (z + injection * x)))."""

    def __init__(self, size: int, gain: float, injection: float, generator: torch.Generator):
        super().__init__()
        self.gain, self.injection = gain, injection
        self.up, self.down = nn.Linear(size, 2 * size, bias=False), nn.Linear(2 * size, size, bias=False)
        for linear in (self.up, self.down):
            with torch.no_grad():
                linear.weight.normal_(std=linear.in_features**-0.5, generator=generator)

    def forward(self, z: Tensor, x: Tensor, step: int) -> Tensor:
        """Map (batch, size) to the same shape."""
        return F.rms_norm(z + self.gain * self.down(F.silu(self.up(z + self.injection * x))), z.shape[-1:])


class StandardCell(nn.Module):
    """z <- rms_norm(z + W2 silu(W1 (z + x))) with normal weights of variance 1 / fan-in and two hidden per feature."""

    def __init__(self, size: int, generator: torch.Generator):
        super().__init__()
        hidden = 2 * size
        self.up = nn.Parameter(torch.randn(hidden, size, generator=generator) / size**0.5)
        self.down = nn.Parameter(torch.randn(size, hidden, generator=generator) / hidden**0.5)

    def forward(self, state: Tensor, inputs: Tensor, step: int) -> Tensor:
        """Return the next state."""
        hidden = F.silu(F.linear(state + inputs, self.up))  # (batch, hidden)
        return F.rms_norm(state + F.linear(hidden, self.down), state.shape[-1:])
