"""Six looped networks in the shape in which public code has them: two TRMs, HRM, recurrent depth, UT, a DEQ block.

Written anew and small; what makes each hard for an estimator is kept, and its docstring says what that is.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def normed(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


class Rotary(nn.Module):
    def __init__(self, length: int, size: int):
        super().__init__()
        angles = torch.arange(length)[:, None] * 100.0 ** -torch.arange(0, 1, 2 / size)
        self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angles.sin().repeat(1, 2), persistent=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.cos, self.sin


def rotated(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * rotary[0] + torch.cat([-second, first], -1) * rotary[1]


class Block(nn.Module):
    """Post-norm attention and SwiGLU; heads are joined by `.view`, which the usual kernel's strides allow."""

    def __init__(self, size: int, heads: int = 2, dropout: float = 0.0):
        super().__init__()
        self.heads, self.drop = heads, nn.Dropout(dropout)
        self.qkv, self.out = nn.Linear(size, 3 * size, bias=False), nn.Linear(size, size, bias=False)
        self.gate_up, self.down = nn.Linear(size, 4 * size, bias=False), nn.Linear(2 * size, size, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if rotary is not None:
            q, k = rotated(q, rotary), rotated(k, rotary)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = normed(x + self.drop(self.out(mixed.view(b, n, d))))
        gate, up = self.gate_up(x).chunk(2, -1)
        return normed(x + self.drop(self.down(F.silu(gate) * up)))


class Level(nn.Module):
    def __init__(self, size: int, depth: int):
        super().__init__()
        self.layers = nn.ModuleList([Block(size) for _ in range(depth)])

    def forward(self, hidden: Tensor, injection: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
        hidden = hidden + injection
        for layer in self.layers:
            hidden = layer(hidden, cos_sin)
        return hidden


@dataclass
class Carry:
    z_H: Tensor
    z_L: Tensor
    steps: Tensor  # int32
    halted: Tensor  # bool


class OfficialTRM(nn.Module):
    """One net for both streams; first states in buffers; a carry of two streams, step counters and flags."""

    def __init__(self, size: int = 8, length: int = 4, depth: int = 2):
        super().__init__()
        self.L_cycles, self.rotary, self.embed = 2, Rotary(length, size // 2), nn.Embedding(5, size)
        self.L_level = Level(size, depth)
        self.register_buffer("H_init", torch.randn(size))
        self.register_buffer("L_init", torch.randn(size))

    def reset(self, carry: Carry) -> Carry:
        def at_first(init: Tensor, z: Tensor) -> Tensor:
            return torch.where(carry.halted.view(-1, 1, 1), init, z)

        steps = torch.where(carry.halted, 0, carry.steps)
        return Carry(at_first(self.H_init, carry.z_H), at_first(self.L_init, carry.z_L), steps, carry.halted)


class OfficialHRM(OfficialTRM):
    """A net per stream; halting inside the carry: whoever has halted stays where it is."""

    def __init__(self, size: int = 8, length: int = 4):
        super().__init__(size, length, depth=1)
        self.H_level, self.max_steps = Level(size, 1), torch.tensor([1, 2, 9])

    def advance(self, carry: Carry, z_H: Tensor) -> Carry:
        z_H = torch.where(carry.halted.view(-1, 1, 1), carry.z_H, z_H)
        steps = carry.steps + (~carry.halted).int()
        return replace(carry, z_H=z_H, steps=steps, halted=carry.halted | (steps >= self.max_steps))


class MixerTRM(nn.Module):
    """One network, given by the user, under three names; one learned vector each as the first output and latent."""

    def __init__(self, network: nn.Module, size: int = 8):
        super().__init__()
        self.embed, self.latent_refinements = nn.Embedding(5, size), 2
        self.output_init, self.latent_init = nn.Parameter(torch.randn(size)), nn.Parameter(torch.randn(size))
        self.network, self.blocks = network, nn.ModuleList([network] * 2)


def mixer(size: int = 8, length: int = 4, dropout: float = 0.2) -> nn.Module:
    """Mixes positions, then features, with dropout."""
    tokens = nn.Sequential(nn.Conv1d(length, length, 1), nn.GELU(), nn.Dropout(dropout))
    features = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Dropout(dropout))
    return nn.Sequential(nn.LayerNorm(size), tokens, features, nn.LayerNorm(size))


class RecurrentDepth(nn.Module):
    """An adapter over [state, embeddings], a core of layers, a random first state, one counter for all, no cache."""

    def __init__(self, size: int = 8, length: int = 4):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(5, size),
                "adapter": nn.Linear(2 * size, size, bias=False),
                "core_block": nn.ModuleList([Block(size) for _ in range(2)]),
                "ln_f": nn.RMSNorm(size),
            }
        )
        self.freqs = Rotary(length, size // 2)

    def initialize_state(self, embedded: Tensor) -> Tensor:
        return nn.init.trunc_normal_(torch.empty_like(embedded), std=0.4)

    def core_block_forward(
        self, x: Tensor, embedded: Tensor, freqs: tuple[Tensor, Tensor], past: None, block_idx: Tensor
    ) -> tuple[Tensor, Tensor]:
        block_idx = block_idx.detach().clone()
        x = self.transformer["adapter"](torch.cat([x, embedded], -1))
        for layer in self.transformer["core_block"]:
            block_idx += 1
            x = layer(x, freqs)
        return self.transformer["ln_f"](x), block_idx


class UniversalTransformer(nn.Module):
    """One block under two names, dropout, a signal per step, and adaptive halting: ints and bools in the state."""

    def __init__(self, size: int = 8, length: int = 4):
        super().__init__()
        self.embed, self.p, self.threshold = nn.Embedding(5, size), nn.Linear(size, 1), 0.9
        self.enc = Block(size, dropout=0.2)
        self.layers = nn.ModuleList([self.enc] * 2)
        self.register_buffer("signal", torch.randn(16, 1, size))

    def step(self, s: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        h = s["h"] + self.signal[step]
        p = self.p(h).sigmoid().squeeze(-1)  # (batch, tokens)
        halts = s["running"] & (s["p"] + p > self.threshold)
        running = s["running"] & ~halts
        weight = torch.where(halts, 1 - s["p"], torch.where(running, p, 0.0)).unsqueeze(-1)
        for layer in self.layers:
            h = layer(h)
        total = s["p"] + p * running
        n_updates = s["n_updates"].clone()
        n_updates += s["running"]
        mixed = h * weight + s["mixed"] * (1 - weight)
        return {"h": h, "mixed": mixed, "p": total, "n_updates": n_updates, "running": running}


class WeightNormedConv(nn.Conv1d):
    """A weight computed from its direction and size once per iteration, and kept as an attribute."""

    def __init__(self, *sizes: int, **options: int):
        super().__init__(*sizes, **options)
        v = self.weight.detach()
        del self._parameters["weight"]
        self.weight_v, self.weight_g = nn.Parameter(v), nn.Parameter(v.flatten(1).norm(dim=1).view(-1, 1, 1))
        self.reset()

    def reset(self) -> None:
        self.weight = self.weight_g * self.weight_v / self.weight_v.flatten(1).norm(dim=1).view(-1, 1, 1)


class DEQBlock(nn.Module):
    """Two resolutions that fuse, injected features, group norms, derived weights, one dropout mask per iteration."""

    def __init__(self, channels: int = 4):
        super().__init__()
        self.stem = nn.Conv1d(2, channels, 3, padding=1)
        self.inject = nn.ModuleList([nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, channels, 2, stride=2)])
        self.convs = nn.ModuleList([WeightNormedConv(channels, channels, 3, padding=1) for _ in range(2)])
        self.down, self.up = WeightNormedConv(channels, channels, 2, stride=2), WeightNormedConv(channels, channels, 1)
        self.norms = nn.ModuleList([nn.GroupNorm(2, channels) for _ in range(2)])

    def reset(self, batch: int) -> None:
        for conv in (*self.convs, self.down, self.up):
            conv.reset()
        self.mask = (torch.rand(batch, len(self.stem.weight), 1) > 0.2) / 0.8

    def forward(self, z: tuple[Tensor, Tensor], injected: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        fine, coarse = (
            torch.relu(norm(part + x + conv(part) * self.mask))
            for part, x, conv, norm in zip(z, injected, self.convs, self.norms, strict=True)
        )
        spread = F.interpolate(self.up(coarse), scale_factor=2.0, mode="nearest")
        return fine + 0.5 * spread, coarse + 0.5 * self.down(fine)
