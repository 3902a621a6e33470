"""HRM, the hierarchical reasoning model: a fast net and a slow net that update two latent states in turn."""

from collections.abc import Mapping

import torch
from torch import Tensor

from loopgrad.models.architecture import Architecture, Puzzles
from loopgrad.models.cells import TwoStreamCell
from loopgrad.models.dtypes import ForwardDtype, dtype_of
from loopgrad.models.official import OfficialWeights, load_official
from loopgrad.models.recursive import RecursiveModel
from loopgrad.models.reversible_cells import coupled


class HRM(RecursiveModel):
    """Hierarchical reasoning model.

    One segment is H_cycles cycles; a cycle is L_cycles updates z_L <- L_net(z_L, z_H + x), then z_H <- H_net(z_H, z_L).
    The published gradient is that of the last two updates, TruncatedBPTT(num_steps=2). Defaults are the published ones.

    Args:
        vocab_size: Number of symbols.
        seq_len: Number of tokens. None lets an attention mixer without learned positions run at any length.
        hidden_size: Number of features D.
        H_layers: Blocks of the slow net.
        L_layers: Blocks of the fast net.
        num_heads: Attention heads.
        expansion: Width of the SwiGLUs, see `swiglu_inner_size`.
        H_cycles: Cycles in a segment.
        L_cycles: Updates of z_L in a cycle.
        mixer: "attention" as published, or "mlp" for a SwiGLU over positions.
        positions: "rope", "learned" or "none"; None for "rope" with attention and "none" with the MLP.
        num_puzzles: Number of puzzle identities, 0 for none.
        puzzle_tokens: Positions that hold a puzzle's vector; None for as many as the vector fills.
        puzzle_dim: Length of a puzzle's vector, None for hidden_size.
        coupling: "damped", "leapfrog" or "momentum" to make the recursion reversible (see `Damped`, `Leapfrog`,
            `Momentum`), None for the published one. Damped copies take a cycle as one update.
        coupling_rate: beta, scale or gamma of the coupling, such as "1/4"; None for its default.
        forward_dtype: dtype of activations, or its name, see `RecursiveModel`.
        seed: Seed of the initial weights.

    Cost:
        H_cycles (L_cycles + 1) net calls per segment.
    Not recommended when:
        Parameters or accuracy count; TRM has a quarter of the parameters and is reported to score
        higher on the published puzzles (arXiv 2510.04871, table 4).
    Reference:
        Wang et al. 2025, arXiv 2506.21734.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import TruncatedBPTT
        >>> from loopgrad.models import HRM
        >>> model = HRM(vocab_size=11, seq_len=81, hidden_size=64, H_layers=1, L_layers=1, num_heads=4)
        >>> output = model(None, torch.zeros(2, 81, dtype=torch.int64), None, TruncatedBPTT(num_steps=2))
        >>> tuple(output.q_halt.shape), model.num_steps, model.depth
        ((2,), 6, 6)
    """

    references = ("wang2025hierarchical",)

    def __init__(
        self,
        vocab_size: int,
        seq_len: int | None,
        hidden_size: int = 512,
        H_layers: int = 4,
        L_layers: int = 4,
        num_heads: int = 8,
        expansion: float = 4,
        H_cycles: int = 2,
        L_cycles: int = 2,
        mixer: str = "attention",
        positions: str | None = None,
        num_puzzles: int = 0,
        puzzle_tokens: int | None = None,
        puzzle_dim: int | None = None,
        coupling: str | None = None,
        coupling_rate: float | str | None = None,
        forward_dtype: ForwardDtype = None,
        seed: int = 0,
    ):
        if puzzle_tokens is None:
            puzzle_tokens = -(-(puzzle_dim or hidden_size) // hidden_size) if num_puzzles else 0
        puzzles = Puzzles(num_puzzles, puzzle_tokens, puzzle_dim)
        parts = Architecture(vocab_size, seq_len, hidden_size, num_heads, expansion, mixer, positions, puzzles)
        forward_dtype = dtype_of(forward_dtype)
        generator = torch.Generator().manual_seed(seed)
        L_net, H_net = parts.net(L_layers, generator), parts.net(H_layers, generator)
        cell = coupled(TwoStreamCell(L_net, H_net, L_cycles), coupling, coupling_rate, forward_dtype)
        super().__init__(parts, cell, H_cycles, ("L", "H"), generator, forward_dtype)

    @classmethod
    def from_official(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        num_heads: int | None = None,
        H_cycles: int = 2,
        L_cycles: int = 2,
        positions: str | None = None,
        seq_len: int | None = None,
        puzzle_tokens: int | None = None,
        forward_dtype: torch.dtype | None = None,
    ) -> "HRM":
        """Build an HRM from a checkpoint of the official code (HRM's own, and the model hrm of TRM's code).

        Arguments and errors are those of `TRM.from_official`; H_cycles and L_cycles are the published 2 and 2, and
        puzzle_tokens=None stands for as many as a puzzle's vector fills.
        """
        weights = OfficialWeights(state_dict)
        model = cls(
            **weights.architecture(num_heads, positions, seq_len, puzzle_tokens, default=0),
            H_layers=weights.num_layers("H_level"),
            L_layers=weights.num_layers("L_level"),
            H_cycles=H_cycles,
            L_cycles=L_cycles,
            forward_dtype=forward_dtype,
        )
        load_official(model, weights)
        return model
