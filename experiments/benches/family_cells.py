"""Recursions that every family is tried on: a block of attention and SwiGLU, a GRU with inputs, an equilibrium cell."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.analysis import cast
from loopgrad.experiments.benches.cells import ResidualCell, SiluCell
from loopgrad.gradients import Estimator, Stats

POSITIONS = 4
Couple = Callable[[nn.Module, int], nn.Module]


class Gru(nn.Module):
    """A GRU that reads an input at every update."""

    def __init__(self, size: int, generator: torch.Generator):
        super().__init__()
        self.gru = nn.GRUCell(size, size)
        with torch.no_grad():
            for weight in self.parameters():
                weight.normal_(0, size**-0.5, generator=generator)

    def forward(self, z: Tensor, x: Tensor, step: int) -> Tensor:
        """Map (batch, size) to the same shape."""
        return self.gru(x, z)


CELLS: dict[str, Callable[[int, torch.Generator], nn.Module]] = {
    "block": lambda size, generator: ResidualCell(size, max(1, size // 32), generator),
    "gru": Gru,
    "equilibrium": lambda size, generator: SiluCell(size, 0.5, 1.0, generator),
}


class Problem:
    """One recursion from given weights, first state and inputs, and the loss sum(z_T * w).

    Args:
        name: One of CELLS.
        size: Features.
        batch_size: Samples.
        length: Updates.
        seed: Seed of all numbers.
        couple: Makes the recursion another one, which can be undone.
    """

    def __init__(self, name: str, size: int, batch_size: int, length: int, seed: int, couple: Couple | None = None):
        generator = torch.Generator().manual_seed(seed)
        cell = CELLS[name](size, generator)
        shape = (batch_size, POSITIONS, size) if name == "block" else (batch_size, size)
        self.name, self.length = name, length
        self.cell = cell if couple is None else couple(cell, length)
        self.state, self.inputs = torch.randn(shape, generator=generator), None
        self.xs, self.weight = None, torch.randn(size, generator=generator)
        if name == "gru":
            self.xs = torch.randn(length, *shape, generator=generator)
        else:
            self.inputs = torch.randn(shape, generator=generator)

    @property
    def given(self) -> list[Tensor]:
        """What is there before the recursion."""
        return [it for it in (self.state, self.inputs, self.xs) if it is not None]

    def loss(self, cell: nn.Module, estimator: Estimator) -> Tensor:
        """Return sum(z_T * w) in the dtype of the cell."""
        return self.run(cell, estimator)[0]

    def run(self, cell: nn.Module, estimator: Estimator) -> tuple[Tensor, Stats]:
        """Return the loss, and what the rollout counts."""
        dtype = next(cell.parameters()).dtype
        state, inputs, weight = (cast(it, dtype) for it in (self.state, self.inputs, self.weight))
        xs: dict[str, Any] = {} if self.xs is None else {"xs": cast(self.xs, dtype)}
        rollout = estimator(cell, state, inputs, self.length, **xs)
        return (rollout.state * weight).sum(), rollout.stats
