"""TRM, the tiny recursive model: one small net that improves a scratch state and an answer in turn."""

from collections.abc import Mapping

import torch
from torch import Tensor

from loopgrad.models.architecture import Architecture, Puzzles
from loopgrad.models.cells import OneStreamCell, TwoStreamCell
from loopgrad.models.dtypes import ForwardDtype, dtype_of
from loopgrad.models.official import OfficialWeights, load_official
from loopgrad.models.recursive import RecursiveModel
from loopgrad.models.reversible_cells import coupled


class TRM(RecursiveModel):
    """Tiny recursive model.

    One segment is H_cycles cycles; a cycle is L_cycles updates z_L <- net(z_L, z_H + x), then z_H <- net(z_H, z_L).
    The published gradient is that of the last cycle, TruncatedBPTT(num_cycles=1). Defaults are the published ones.

    Args:
        vocab_size: Number of symbols.
        seq_len: Number of tokens. None lets an attention mixer without learned positions run at any length.
        hidden_size: Number of features D.
        num_layers: Blocks of the net.
        num_heads: Attention heads.
        expansion: Width of the SwiGLUs, see `swiglu_inner_size`.
        H_cycles: Cycles in a segment.
        L_cycles: Updates of z_L in a cycle.
        mixer: "attention", or "mlp" for a SwiGLU over positions (short, fixed-size puzzles such as Sudoku).
        positions: "rope", "learned" or "none"; None for "rope" with attention and "none" with the MLP.
        streams: 2 for z_L and z_H, 1 for z_L alone.
        num_puzzles: Number of puzzle identities, 0 for none.
        puzzle_tokens: Positions that hold a puzzle's vector; None for 16, or 0 without puzzle identities.
        puzzle_dim: Length of a puzzle's vector, None for hidden_size.
        coupling: "damped", "leapfrog" or "momentum" to make the recursion reversible (see `Damped`, `Leapfrog`,
            `Momentum`), None for the published one. Damped copies take a cycle as one update.
        coupling_rate: beta, scale or gamma of the coupling, such as "1/4"; None for its default.
        forward_dtype: dtype of activations, or its name, see `RecursiveModel`.
        seed: Seed of the initial weights.

    Cost:
        H_cycles (L_cycles + 1) net calls per segment.
    Not recommended when:
        Puzzles are long sequences: attention costs the square of the length at every update.
    Reference:
        Jolicoeur-Martineau 2025, arXiv 2510.04871.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import TruncatedBPTT
        >>> from loopgrad.models import TRM
        >>> model = TRM(vocab_size=11, seq_len=81, hidden_size=64, num_heads=4)
        >>> tokens = torch.zeros(2, 81, dtype=torch.int64)
        >>> output = model(None, tokens, None, TruncatedBPTT(num_cycles=1))
        >>> tuple(output.logits.shape), model.num_steps, model.depth
        ((2, 81, 11), 21, 42)
    """

    references = ("jolicoeurmartineau2025less",)

    def __init__(
        self,
        vocab_size: int,
        seq_len: int | None,
        hidden_size: int = 512,
        num_layers: int = 2,
        num_heads: int = 8,
        expansion: float = 4,
        H_cycles: int = 3,
        L_cycles: int = 6,
        mixer: str = "attention",
        positions: str | None = None,
        streams: int = 2,
        num_puzzles: int = 0,
        puzzle_tokens: int | None = None,
        puzzle_dim: int | None = None,
        coupling: str | None = None,
        coupling_rate: float | str | None = None,
        forward_dtype: ForwardDtype = None,
        seed: int = 0,
    ):
        if streams not in (1, 2):
            raise ValueError(f"streams must be 1 (z_L alone) or 2 (z_L and z_H), got {streams!r}")
        if puzzle_tokens is None:
            puzzle_tokens = 16 if num_puzzles else 0
        puzzles = Puzzles(num_puzzles, puzzle_tokens, puzzle_dim)
        parts = Architecture(vocab_size, seq_len, hidden_size, num_heads, expansion, mixer, positions, puzzles)
        forward_dtype = dtype_of(forward_dtype)
        generator = torch.Generator().manual_seed(seed)
        net = parts.net(num_layers, generator)
        cell = TwoStreamCell(net, L_cycles=L_cycles) if streams == 2 else OneStreamCell(net, L_cycles)
        cell = coupled(cell, coupling, coupling_rate, forward_dtype)
        super().__init__(parts, cell, H_cycles, ("L", "H") if streams == 2 else ("L",), generator, forward_dtype)

    @classmethod
    def from_official(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        num_heads: int | None = None,
        H_cycles: int = 3,
        L_cycles: int = 6,
        positions: str | None = None,
        seq_len: int | None = None,
        puzzle_tokens: int | None = None,
        streams: int | None = None,
        forward_dtype: torch.dtype | None = None,
    ) -> "TRM":
        """Build a TRM from a checkpoint of the official code (models trm and trm_singlez).

        Sizes, mixer, learned positions and puzzle table are read off the tensors. Prefixes `_orig_mod.`, `model.` and
        `inner.` are dropped wherever they stand in front. Weights become float32, whatever they are stored in.

        Args:
            state_dict: Names and tensors of the checkpoint.
            num_heads: Attention heads, which no shape reveals; None for hidden_size // 64, at least 1.
            H_cycles: Cycles in a segment, which no shape reveals; the published configuration's 3.
            L_cycles: Updates of z_L in a cycle, which no shape reveals; 6 (the README's ARC and maze commands say 4).
            positions: What attention without learned positions uses: None or "rope", or "none".
            seq_len: Number of tokens. Where weights depend on it it is read off, given puzzle_tokens; else it may stay
                None, and the model takes any length.
            puzzle_tokens: Positions of the puzzle's vector; None for what seq_len implies, else the published 16.
            streams: 1 or 2; None for what the checkpoint holds.
            forward_dtype: dtype of activations, torch.bfloat16 in the published configuration; None for float32.

        Raises:
            ValueError: A name is missing, unknown or of the wrong shape; the message gives it and the nearest names.
        """
        weights = OfficialWeights(state_dict)
        if streams is None:
            streams = 2 if "H_init" in weights.tensors else 1
        model = cls(
            **weights.architecture(num_heads, positions, seq_len, puzzle_tokens, default=16),
            num_layers=weights.num_layers("L_level"),
            H_cycles=H_cycles,
            L_cycles=L_cycles,
            streams=streams,
            forward_dtype=forward_dtype,
        )
        load_official(model, weights)
        return model
