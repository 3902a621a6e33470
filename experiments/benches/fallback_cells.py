"""Cells of one update per cycle that do not settle within the gate, as the bench of fallbacks trains them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loopgrad.experiments.benches.cells import BranchCell, ResidualCell


class RecurrentDepthCell(nn.Module):
    """z <- norm(two layers(W [z, x])): an adapter over state and input, then sandwich-normed blocks."""

    def __init__(self, size: int, generator: torch.Generator):
        super().__init__()
        self.adapter = nn.Linear(2 * size, size, bias=False)
        self.layers = nn.ModuleList([BranchCell(size, 2, generator) for _ in range(2)])
        _normal(self.adapter.weight, generator)

    def forward(self, z: Tensor, x: Tensor, step: int) -> Tensor:
        """Map (batch, positions, size) to the same shape."""
        z = self.adapter(torch.cat([z, x], -1))
        for layer in self.layers:
            z = F.rms_norm(z + layer(z, torch.zeros_like(z), step), z.shape[-1:])
        return z


class LoopedTransformer(ResidualCell):
    """A pre-norm block with the input added to what it reads, and nothing that bounds the state."""


class GatedCell(nn.Module):
    """A GRU that reads the same input at every update."""

    def __init__(self, size: int, generator: torch.Generator):
        super().__init__()
        self.gru = nn.GRUCell(size, size)
        for weight in self.gru.parameters():
            _normal(weight, generator)

    def forward(self, z: Tensor, x: Tensor, step: int) -> Tensor:
        """Map (batch, positions, size) to the same shape."""
        return self.gru(x.flatten(0, 1), z.flatten(0, 1)).view_as(z)


class TanhCell(nn.Module):
    """z <- tanh(W z + U x + b) with W orthogonal at first: a spectral radius near one."""

    def __init__(self, size: int, generator: torch.Generator):
        super().__init__()
        self.inject = nn.Linear(size, size)
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(size, size, generator=generator))[0])
        _normal(self.inject.weight, generator, 0.3)
        nn.init.zeros_(self.inject.bias)

    def forward(self, z: Tensor, x: Tensor, step: int) -> Tensor:
        """Map (batch, positions, size) to the same shape."""
        return torch.tanh(F.linear(z, self.weight) + self.inject(x))


def _normal(weight: Tensor, generator: torch.Generator, gain: float = 1.0) -> None:
    with torch.no_grad():
        weight.normal_(0, gain * weight.shape[-1] ** -0.5, generator=generator)


CELLS: dict[str, Callable[[int, torch.Generator], nn.Module]] = {
    "recurrent depth": RecurrentDepthCell,
    "looped transformer": lambda size, generator: LoopedTransformer(size, 2, generator),
    "gru": GatedCell,
    "tanh": TanhCell,
}
