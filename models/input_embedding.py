"""How a puzzle becomes x, the input that every update sees: puzzle and cell tokens, plus positions, scaled."""

import torch
from torch import Tensor
from torch.nn import functional as F

from loopgrad.models.layers import Embedding, OneLine


class InputEmbedding(OneLine):
    """x = sqrt(D) [puzzle tokens ; token vectors], or sqrt(D) / sqrt(2) (the same + learned positions).

    A puzzle's vector of length puzzle_dim fills the first of `puzzle_tokens` positions before the sequence; what it
    does not fill is zero. Token and position vectors start with std 1/sqrt(D), puzzle vectors at zero.

    Args:
        vocab_size: Number of symbols.
        hidden_size: D.
        generator: Source of the initial vectors.
        seq_len: Length of the token sequence; None where nothing depends on it.
        num_puzzles: Number of puzzle identities, 0 for none.
        puzzle_tokens: Positions before the sequence, 0 without puzzle identities.
        puzzle_dim: Length of a puzzle's vector, at most puzzle_tokens * D; None for D.
        learned_positions: Whether there are position vectors; they need seq_len.

    Raises:
        ValueError: The sizes contradict each other.

    Reference:
        Wang et al. 2025, arXiv 2506.21734; Jolicoeur-Martineau 2025, arXiv 2510.04871.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        generator: torch.Generator,
        *,
        seq_len: int | None = None,
        num_puzzles: int = 0,
        puzzle_tokens: int = 0,
        puzzle_dim: int | None = None,
        learned_positions: bool = False,
    ):
        super().__init__()
        puzzle_dim = hidden_size if puzzle_dim is None else puzzle_dim
        if num_puzzles == 0 and puzzle_tokens:
            raise ValueError(
                f"puzzle_tokens={puzzle_tokens} with num_puzzles=0: without puzzle identities there is nothing to put "
                "into puzzle tokens; leave puzzle_tokens out, or give num_puzzles"
            )
        if num_puzzles and not 0 < puzzle_dim <= puzzle_tokens * hidden_size:
            raise ValueError(
                f"a puzzle vector of {puzzle_dim} numbers does not fit into puzzle_tokens={puzzle_tokens} positions of "
                f"hidden_size={hidden_size}: raise puzzle_tokens or lower puzzle_dim"
            )
        if learned_positions and seq_len is None:
            raise ValueError("positions='learned' needs seq_len: there is one vector for each position")
        self.hidden_size, self.seq_len, self.puzzle_tokens = hidden_size, seq_len, puzzle_tokens
        std = hidden_size**-0.5
        self.tokens = Embedding(vocab_size, hidden_size, std, generator)
        self.puzzles = Embedding(num_puzzles, puzzle_dim, 0.0, generator) if num_puzzles else None
        positions = puzzle_tokens + (seq_len or 0)
        self.positions = Embedding(positions, hidden_size, std, generator) if learned_positions else None

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.tokens.weight.shape[0]

    def extra_repr(self) -> str:
        """Return the lengths and the sizes of the tables."""
        tables = {name.removesuffix(".weight"): tuple(table.shape) for name, table in self.named_parameters()}
        sizes = {"seq_len": self.seq_len, "puzzle_tokens": self.puzzle_tokens, **tables}
        return ", ".join(f"{name}={size}" for name, size in sizes.items())

    def forward(self, inputs: Tensor, puzzle_ids: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
        """Map tokens (batch, seq_len) and puzzle ids (batch,) to x, (batch, puzzle_tokens + seq_len, D), in `dtype`."""
        if inputs.dim() != 2:
            raise ValueError(f"inputs must be tokens of shape (batch, seq_len), got shape {tuple(inputs.shape)}")
        if self.seq_len is not None and inputs.shape[1] != self.seq_len and self.positions is not None:
            raise ValueError(
                f"this model has learned positions for seq_len={self.seq_len} and {self.puzzle_tokens} puzzle tokens, "
                f"inputs have {inputs.shape[1]} tokens: pad them, or build the model with that seq_len"
            )
        x = _cast(self.tokens(inputs), dtype)
        if self.puzzles is not None:
            if puzzle_ids is None:
                raise ValueError("puzzle_ids is None, and this model has puzzle embeddings: pass ids of shape (batch,)")
            vector = _cast(self.puzzles(puzzle_ids), dtype)  # (batch, puzzle_dim)
            vector = F.pad(vector, (0, self.puzzle_tokens * self.hidden_size - vector.shape[-1]))
            x = torch.cat((vector.unflatten(-1, (self.puzzle_tokens, self.hidden_size)), x), dim=1)
        if self.positions is not None:
            x = 0.5**0.5 * (x + _cast(self.positions.weight, dtype))
        return self.hidden_size**0.5 * x


def _cast(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x if dtype is None else x.to(dtype)
