"""Rivals on the same frozen vectors: layers tied or not, TRM's two streams, an MLP and a linear probe."""

import torch
from torch import Tensor

from loopgrad.gradients.contract import period_of
from loopgrad.models.architecture import Architecture, Puzzles
from loopgrad.models.dtypes import ForwardDtype, dtype_of
from loopgrad.models.frozen import FrozenEncoder
from loopgrad.models.functional import gated_silu
from loopgrad.models.latent import LatentReasoner, OneDepth
from loopgrad.models.latent_cells import Pooled, SlotLoop, SlotStack, SlotTwoStream
from loopgrad.models.latent_embedding import PooledEmbedding, SlotEmbedding
from loopgrad.models.layers import Linear, OneLine
from loopgrad.models.reversible_cells import coupled
from loopgrad.models.token_model import check_sizes


class LatentLoop(LatentReasoner):
    """z <- net(z + x) over the slots of a frozen encoder, the same layers at every update.

    Args:
        frozen: The frozen encoder.
        seq_len: Slots of a sample; None for any.
        hidden_size: Number of features.
        num_layers: Blocks of an update.
        num_heads: Attention heads.
        expansion: Width of the SwiGLUs, see `swiglu_inner_size`.
        num_loops: Updates of a segment.
        positions: "rope", "none", or None for "rope".
        coupling: "damped", "leapfrog" or "momentum" makes the recursion reversible, which is another model (see
            `Damped`); None for the recursion itself.
        coupling_rate: beta, scale or gamma of the coupling, such as "1/4"; None for its default.
        forward_dtype: dtype of activations, or its name, see `LatentReasoner`.
        seed: Seed of the initial weights.

    Cost:
        num_loops nets over (batch, slots, hidden_size), attention the square of the slots.
    Not recommended when:
        The depth that is needed is known and small: `LatentStack` has weights for each update.
    Reference:
        Dehghani et al. 2019, arXiv 1807.03819; Saunshi et al. 2025, arXiv 2502.17416.

    Raises:
        ValueError: A size or a choice is not one of the above, or the coupling is unknown.

    Example:
        >>> import torch
        >>> from loopgrad.models import FeatureTable, LatentLoop, LatentStack, SlotLayout
        >>> frozen = FeatureTable(torch.randn(9, 24), SlotLayout(answers=4))
        >>> tied = LatentLoop(frozen, seq_len=6, hidden_size=32, num_heads=2, num_loops=4)
        >>> free = LatentStack(frozen, seq_len=6, hidden_size=32, num_heads=2, depth=4)
        >>> weights = [sum(p.numel() for p in model.cell.parameters()) for model in (tied, free)]
        >>> tied.depth, free.depth, weights[1] // weights[0]
        (4, 4, 4)
    """

    references = ("dehghani2019universal", "saunshi2025reasoning")

    def __init__(
        self,
        frozen: FrozenEncoder,
        seq_len: int | None,
        hidden_size: int = 128,
        num_layers: int = 1,
        num_heads: int = 4,
        expansion: float = 4,
        num_loops: int = 4,
        positions: str | None = None,
        coupling: str | None = None,
        coupling_rate: float | str | None = None,
        forward_dtype: ForwardDtype = None,
        seed: int = 0,
    ):
        check_sizes(num_loops=num_loops)
        generator = torch.Generator().manual_seed(seed)
        parts = _parts(frozen, hidden_size, num_heads, expansion, positions)
        embedding = SlotEmbedding(frozen, hidden_size, generator, seq_len)
        cell = coupled(SlotLoop(parts.net(num_layers, generator)), coupling, coupling_rate, dtype_of(forward_dtype))
        answer = Linear(hidden_size, frozen.layout.answers, generator, bias=True)
        super().__init__(embedding, cell, answer, num_loops, hidden_size, forward_dtype=dtype_of(forward_dtype))


class LatentStack(OneDepth):
    """z <- net_t(z + x) over the slots of a frozen encoder, each update with layers of its own: `LatentLoop` untied.

    Args:
        frozen: The frozen encoder.
        seq_len: Slots of a sample; None for any.
        hidden_size: Number of features.
        depth: Blocks, an update each.
        num_heads: Attention heads.
        expansion: Width of the SwiGLUs, see `swiglu_inner_size`.
        positions: "rope", "none", or None for "rope".
        forward_dtype: dtype of activations, or its name, see `LatentReasoner`.
        seed: Seed of the initial weights.

    Cost:
        That of a `LatentLoop` of as many loops, with `depth` times its cell's parameters.
    Not recommended when:
        It is compared at equal depth only: give the size of equal parameters, too.
    Reference:
        Vaswani et al. 2017, arXiv 1706.03762.

    Raises:
        ValueError: A size or a choice is not one of the above.
    """

    references = ("vaswani2017attention",)

    def __init__(
        self,
        frozen: FrozenEncoder,
        seq_len: int | None,
        hidden_size: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        expansion: float = 4,
        positions: str | None = None,
        forward_dtype: ForwardDtype = None,
        seed: int = 0,
    ):
        check_sizes(depth=depth)
        generator = torch.Generator().manual_seed(seed)
        parts = _parts(frozen, hidden_size, num_heads, expansion, positions)
        embedding = SlotEmbedding(frozen, hidden_size, generator, seq_len)
        cell = SlotStack([parts.net(1, generator) for _ in range(depth)])
        answer = Linear(hidden_size, frozen.layout.answers, generator, bias=True)
        super().__init__(embedding, cell, answer, depth, hidden_size, forward_dtype=dtype_of(forward_dtype))


class LatentTRM(LatentReasoner):
    """TRM's recursion over the slots of a frozen encoder: the answer z_H and the scratch z_L, one net for both.

    Args:
        frozen: The frozen encoder.
        seq_len: Slots of a sample; None for any.
        hidden_size: Number of features.
        num_layers: Blocks of the net.
        num_heads: Attention heads.
        expansion: Width of the SwiGLUs, see `swiglu_inner_size`.
        H_cycles: Cycles in a segment.
        L_cycles: Updates of z_L in a cycle.
        positions: "rope", "none", or None for "rope".
        coupling: "damped", "leapfrog" or "momentum" makes the recursion reversible, which is another model (see
            `Damped`); None for the recursion itself.
        coupling_rate: beta, scale or gamma of the coupling, such as "1/4"; None for its default.
        forward_dtype: dtype of activations, or its name, see `LatentReasoner`.
        seed: Seed of the initial weights.

    Cost:
        H_cycles (L_cycles + 1) nets over (batch, slots, hidden_size).
    Not recommended when:
        Halting is to be learnt: it has no halting head, and answers in one segment.
    Reference:
        Jolicoeur-Martineau 2025, arXiv 2510.04871.

    Raises:
        ValueError: A size or a choice is not one of the above, or the coupling is unknown.
    """

    references = ("jolicoeurmartineau2025less",)

    def __init__(
        self,
        frozen: FrozenEncoder,
        seq_len: int | None,
        hidden_size: int = 128,
        num_layers: int = 1,
        num_heads: int = 4,
        expansion: float = 4,
        H_cycles: int = 2,
        L_cycles: int = 2,
        positions: str | None = None,
        coupling: str | None = None,
        coupling_rate: float | str | None = None,
        forward_dtype: ForwardDtype = None,
        seed: int = 0,
    ):
        check_sizes(H_cycles=H_cycles, L_cycles=L_cycles)
        generator = torch.Generator().manual_seed(seed)
        parts = _parts(frozen, hidden_size, num_heads, expansion, positions)
        embedding = SlotEmbedding(frozen, hidden_size, generator, seq_len)
        cell = SlotTwoStream(parts.net(num_layers, generator), L_cycles)
        cell = coupled(cell, coupling, coupling_rate, dtype_of(forward_dtype))
        answer, steps = Linear(hidden_size, frozen.layout.answers, generator, bias=True), H_cycles * period_of(cell)
        super().__init__(embedding, cell, answer, steps, hidden_size, ("z_L", "z_H"), dtype_of(forward_dtype))


class LatentMLP(OneDepth):
    """logits = W silu(W_gate v) * W_up v of the means v of frozen vectors, see `PooledEmbedding`.

    Args:
        frozen: The frozen encoder.
        seq_len: Slots of a sample.
        hidden_size: Width between the two layers.
        forward_dtype: dtype of activations, or its name, see `LatentReasoner`.
        seed: Seed of the initial weights.

    Cost:
        2 hidden_size (2 size) + hidden_size answer_slots answers products a sample.
    Not recommended when:
        The order of statements matters, which means do not keep.
    Reference:
        Shazeer 2020, arXiv 2002.05202.

    Raises:
        ValueError: hidden_size is below 1.
    """

    references = ("shazeer2020glu",)

    def __init__(
        self,
        frozen: FrozenEncoder,
        seq_len: int,
        hidden_size: int = 200,
        forward_dtype: ForwardDtype = None,
        seed: int = 0,
    ):
        check_sizes(hidden_size=hidden_size)
        generator, layout = torch.Generator().manual_seed(seed), frozen.layout
        embedding = PooledEmbedding(frozen, seq_len)
        net = _Gated(embedding.hidden_size, hidden_size, layout.answer_slots * layout.answers, generator)
        super().__init__(
            embedding, Pooled(net, layout.answer_slots), None, 1, layout.answers, forward_dtype=dtype_of(forward_dtype)
        )


class LatentLinear(OneDepth):
    """logits = W v + b of the means v of frozen vectors, see `PooledEmbedding`: the linear probe.

    Args:
        frozen: The frozen encoder.
        seq_len: Slots of a sample.
        forward_dtype: dtype of activations, or its name, see `LatentReasoner`.
        seed: Seed of the initial weights.

    Cost:
        (2 size) answer_slots answers products a sample.
    Not recommended when:
        It is taken for what the vectors hold: it is what a linear map finds in their means.
    Reference:
        Alain and Bengio 2017, arXiv 1610.01644.
    """

    references = ("alain2017understanding",)

    def __init__(self, frozen: FrozenEncoder, seq_len: int, forward_dtype: ForwardDtype = None, seed: int = 0):
        generator, layout = torch.Generator().manual_seed(seed), frozen.layout
        embedding = PooledEmbedding(frozen, seq_len)
        net = Linear(embedding.hidden_size, layout.answer_slots * layout.answers, generator, bias=True)
        super().__init__(
            embedding, Pooled(net, layout.answer_slots), None, 1, layout.answers, forward_dtype=dtype_of(forward_dtype)
        )


class _Gated(OneLine):
    """y = W_out (silu(W_gate x) * W_up x) + b."""

    def __init__(self, in_features: int, inner_size: int, out_features: int, generator: torch.Generator):
        super().__init__()
        self.inner_size = inner_size
        self.gate_up = Linear(in_features, 2 * inner_size, generator)
        self.out = Linear(inner_size, out_features, generator, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up.split(x, [self.inner_size, self.inner_size])
        return self.out(gated_silu(gate, up))


def _parts(
    frozen: FrozenEncoder, hidden_size: int, num_heads: int, expansion: float, positions: str | None
) -> Architecture:
    if positions == "learned":
        raise ValueError("positions must be 'rope', 'none' or None: stories of other lengths would have no positions")
    vocab = frozen.layout.answers
    return Architecture(vocab, None, hidden_size, num_heads, expansion, "attention", positions, Puzzles(0, 0, None))
