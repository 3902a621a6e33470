"""The baseline that cannot recurse: the blocks of a recursive model, applied once."""

import torch
from torch import Tensor

from loopgrad.gradients import Estimator
from loopgrad.models.architecture import Architecture, Puzzles
from loopgrad.models.blocks import Net
from loopgrad.models.cells import LoopCell, State
from loopgrad.models.dtypes import ForwardDtype, dtype_of
from loopgrad.models.recursive import Output, RecursiveModel


class FeedForwardCell(LoopCell):
    """z_H <- net(z_H + x), the one update of a feed-forward network."""

    def __init__(self, net: Net):
        super().__init__(net, "z_H")


class FeedForward(RecursiveModel):
    """The blocks of TRM and HRM applied once, from the initial state: logits = W net(z_init + x).

    It is called like a recursive model and has segments of one update, but it forgets the carry: every segment starts
    from the initial state, so more segments do not make the computation deeper.

    Args:
        vocab_size: Number of symbols.
        seq_len: Number of tokens, see `TRM`.
        hidden_size: Number of features D.
        num_layers: Blocks: with TRM's num_layers, the same parameters as a TRM, used once.
        depth: Blocks, in place of num_layers: with depth=trm.depth, as many unshared blocks as one segment of that TRM
            applies, the same depth with depth / num_layers times the parameters.
        num_heads: Attention heads.
        expansion: Width of the SwiGLUs, see `swiglu_inner_size`.
        mixer: "attention" or "mlp", see `TRM`.
        positions: "rope", "learned", "none" or None, see `TRM`.
        num_puzzles: Number of puzzle identities, 0 for none.
        puzzle_tokens: Positions that hold a puzzle's vector; None for 16, or 0 without puzzle identities.
        puzzle_dim: Length of a puzzle's vector, None for hidden_size.
        forward_dtype: dtype of activations, or its name, see `RecursiveModel`.
        seed: Seed of the initial weights.

    Not recommended when:
        It is compared at equal parameters only; give both sizes, `num_layers` and `depth`.
    Reference:
        Jolicoeur-Martineau 2025, arXiv 2510.04871, tables 4 and 5 ("direct prediction").

    Example:
        >>> import torch
        >>> from loopgrad.gradients import BPTT
        >>> from loopgrad.models import FeedForward
        >>> model = FeedForward(vocab_size=5, seq_len=16, hidden_size=32, num_heads=2, depth=6)
        >>> output = model(None, torch.zeros(2, 16, dtype=torch.int64), None, BPTT())
        >>> tuple(output.logits.shape), model.num_steps, model.depth
        ((2, 16, 5), 1, 6)
    """

    references = ("jolicoeurmartineau2025less",)

    def __init__(
        self,
        vocab_size: int,
        seq_len: int | None,
        hidden_size: int = 512,
        num_layers: int = 2,
        depth: int | None = None,
        num_heads: int = 8,
        expansion: float = 4,
        mixer: str = "attention",
        positions: str | None = None,
        num_puzzles: int = 0,
        puzzle_tokens: int | None = None,
        puzzle_dim: int | None = None,
        forward_dtype: ForwardDtype = None,
        seed: int = 0,
    ):
        if puzzle_tokens is None:
            puzzle_tokens = 16 if num_puzzles else 0
        puzzles = Puzzles(num_puzzles, puzzle_tokens, puzzle_dim)
        parts = Architecture(vocab_size, seq_len, hidden_size, num_heads, expansion, mixer, positions, puzzles)
        forward_dtype = dtype_of(forward_dtype)
        generator = torch.Generator().manual_seed(seed)
        net = parts.net(num_layers if depth is None else depth, generator)
        super().__init__(parts, FeedForwardCell(net), 1, ("H",), generator, forward_dtype)

    # it has no depth to be told
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state: State | None, inputs: Tensor, puzzle_ids: Tensor | None, estimator: Estimator
    ) -> Output:
        """Answer from the initial state, whatever `state` is; see `RecursiveModel.forward`."""
        return super().forward(None, inputs, puzzle_ids, estimator)
