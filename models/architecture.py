"""The choices that TRM, HRM, their baseline and the looped transformer share, and the parts that follow from them."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from loopgrad.gradients.host_memory import check_fits
from loopgrad.models.attention import Rotary
from loopgrad.models.blocks import AttentionBlock, MLPBlock, Net
from loopgrad.models.input_embedding import InputEmbedding
from loopgrad.models.layers import swiglu_inner_size


class Puzzles(NamedTuple):
    """Puzzle identities: their number, the positions before the sequence, and the length of a vector, if not D."""

    number: int
    tokens: int
    dim: int | None


@dataclass(frozen=True)
class Architecture:
    """Sizes and kinds of the parts of a recursive model; the meaning of each is told in `TRM`.

    Raises:
        ValueError: A choice is unknown, or two of them contradict each other.
    """

    vocab_size: int
    seq_len: int | None
    hidden_size: int
    num_heads: int
    expansion: float
    mixer: str
    positions: str | None
    puzzles: Puzzles
    causal: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.expansion < float("inf"):
            raise ValueError(f"expansion must be a finite number above 0, got {self.expansion}")
        if self.mixer not in ("attention", "mlp"):
            raise ValueError(f"mixer must be 'attention' or 'mlp', got {self.mixer!r}")
        if self.positions not in (None, "rope", "learned", "none"):
            raise ValueError(f"positions must be 'rope', 'learned', 'none' or None, got {self.positions!r}")
        if self.mixer == "mlp" and self.positions == "rope":
            raise ValueError(
                "positions='rope' turns queries and keys, and mixer='mlp' has none: use positions='none' or 'learned'"
            )
        if self.mixer == "mlp" and self.seq_len is None:
            raise ValueError("mixer='mlp' needs seq_len: it has weights for each position")

    def embedding(self, generator: torch.Generator) -> InputEmbedding:
        """Build the input embedding."""
        table = self.puzzles.number * (self.puzzles.dim or self.hidden_size)
        check_fits(4 * table, f"a table of {self.puzzles.number} puzzles with hidden_size={self.hidden_size}")
        return InputEmbedding(
            self.vocab_size,
            self.hidden_size,
            generator,
            seq_len=self.seq_len,
            num_puzzles=self.puzzles.number,
            puzzle_tokens=self.puzzles.tokens,
            puzzle_dim=self.puzzles.dim,
            learned_positions=self.positions == "learned",
        )

    def net(self, num_layers: int, generator: torch.Generator) -> Net:
        """Build a stack of `num_layers` blocks."""
        if num_layers < 1:
            raise ValueError(f"a net needs at least one layer, got {num_layers}")
        num_positions = 0 if self.seq_len is None else self.puzzles.tokens + self.seq_len
        check_fits(
            4 * num_layers * self._numbers(num_positions),
            f"weights of {num_layers} layers with hidden_size={self.hidden_size}, expansion={self.expansion}",
        )
        turned = self.mixer == "attention" and self.positions in (None, "rope")
        rotary = Rotary(self.hidden_size // self.num_heads, num_positions) if turned else None
        return Net([self._block(num_positions, generator) for _ in range(num_layers)], rotary)

    def _numbers(self, num_positions: int) -> int:
        """Return how many weights a block holds."""
        width, mixed = self.hidden_size, num_positions if self.mixer == "mlp" else 0
        swiglus = sum(3 * size * swiglu_inner_size(size, self.expansion) for size in (width, mixed))
        return swiglus + (4 * width**2 if self.mixer == "attention" else 0)

    def _block(self, num_positions: int, generator: torch.Generator) -> nn.Module:
        if self.mixer == "mlp":
            return MLPBlock(self.hidden_size, num_positions, self.expansion, generator)
        return AttentionBlock(self.hidden_size, self.num_heads, self.expansion, generator, self.causal)
