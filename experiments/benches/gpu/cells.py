"""A deep cell: residual blocks one after the other, applied again and again."""

import torch
from torch import Tensor, nn

from loopgrad.experiments.benches.cells import ResidualCell


class DeepCell(nn.Module):
    """The cell of `ResidualCell` with several blocks, of which the first reads the inputs.

    Args:
        size: Features.
        layers: Blocks.
        generator: Of the initial weights.
    """

    def __init__(self, size: int, layers: int, generator: torch.Generator):
        super().__init__()
        heads = max(1, size // 128)
        self.blocks = nn.ModuleList(ResidualCell(size, heads, generator) for _ in range(layers))

    def forward(self, z: Tensor, x: Tensor, step: int) -> Tensor:
        """Map (batch, positions, size) to the same shape."""
        for block in self.blocks:
            z, x = block(z, x, step), x.new_zeros(())
        return z
