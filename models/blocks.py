"""Post-norm blocks and the net that a recursion applies again and again.

A block mixes positions by attention or by an MLP over the position axis, then mixes features by a SwiGLU.
"""

from collections import Counter

import torch
from torch import Tensor, nn

from loopgrad.models.attention import Attention, Rotary, Tables
from loopgrad.models.functional import rms_norm
from loopgrad.models.layers import OneLine, SwiGLU


class AttentionBlock(OneLine):
    """h <- rms(h + attention(h)); h <- rms(h + swiglu(h)), both norms over features.

    Args:
        hidden_size: Number of features.
        num_heads: Number of attention heads.
        expansion: Width of the SwiGLU, see `swiglu_inner_size`.
        generator: Source of the initial weights.
        causal: Whether a position attends to itself and to those before it alone.

    Reference:
        Wang et al. 2025, arXiv 2506.21734.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, expansion: float, generator: torch.Generator, causal: bool = False
    ):
        super().__init__()
        self.attention = Attention(hidden_size, num_heads, generator, causal)
        self.mlp = SwiGLU(hidden_size, expansion, generator)

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"{self.attention.extra_repr()}, inner_size={self.mlp.inner_size}"

    def forward(self, h: Tensor, tables: Tables | None = None, mask: Tensor | None = None) -> Tensor:
        """Map (batch, positions, hidden_size) to the same shape; only positions of `mask` are attended to."""
        h = rms_norm(h + self.attention(h, tables, mask))
        return rms_norm(h + self.mlp(h))


class MLPBlock(OneLine):
    """h <- rms(h + swiglu over positions), norm over positions; h <- rms(h + swiglu(h)), norm over features.

    Works at one length only, and for a few hundred positions at most: its first SwiGLU has weights for each position.

    Args:
        hidden_size: Number of features.
        num_positions: Number of positions.
        expansion: Width of both SwiGLUs, see `swiglu_inner_size`.
        generator: Source of the initial weights.

    Reference:
        Jolicoeur-Martineau 2025, arXiv 2510.04871; Tolstikhin et al. 2021, arXiv 2105.01601.
    """

    def __init__(self, hidden_size: int, num_positions: int, expansion: float, generator: torch.Generator):
        super().__init__()
        self.token_mlp = SwiGLU(num_positions, expansion, generator)
        self.mlp = SwiGLU(hidden_size, expansion, generator)

    def extra_repr(self) -> str:
        """Return the sizes."""
        positions, hidden_size = self.token_mlp.down.weight.shape[0], self.mlp.down.weight.shape[0]
        return f"{hidden_size=}, {positions=}, inner_size={self.mlp.inner_size}"

    def forward(self, h: Tensor, tables: Tables | None = None) -> Tensor:
        """Map (batch, positions, hidden_size) to the same shape; there is nothing for `tables` to turn."""
        h = h.transpose(1, 2)  # (batch, hidden_size, positions)
        h = rms_norm(h + self.token_mlp(h)).transpose(1, 2)
        return rms_norm(h + self.mlp(h))


class Net(OneLine):
    """A stack of blocks that sees its input by addition: net(h, injected) = blocks(h + injected).

    Args:
        blocks: The blocks, in order.
        rotary: Rotary positions for their queries and keys, or None.
    """

    def __init__(self, blocks: list[nn.Module], rotary: Rotary | None = None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.rotary = rotary

    def extra_repr(self) -> str:
        """Return how many blocks of which kind there are."""
        kinds = [f"{count} x {block}" for block, count in Counter(map(repr, self.blocks)).items()]
        return ", ".join(kinds if self.rotary is None else [*kinds, repr(self.rotary)])

    def forward(self, h: Tensor, injected: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Map (batch, positions, hidden_size) to the same shape; `mask` is for blocks of attention."""
        if injected is not None:
            h = h + injected
        tables = None if self.rotary is None else self.rotary(h.shape[1])
        for block in self.blocks:
            h = block(h, tables) if mask is None else block(h, tables, mask)
        return h
