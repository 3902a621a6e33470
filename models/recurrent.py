"""GRU and LSTM, several layers deep, as recursions over the tokens of a sequence."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from loopgrad.gradients.host_memory import check_fits
from loopgrad.models.cells import State
from loopgrad.models.reversible_cells import coupled
from loopgrad.models.token_model import TokenModel, check_sizes


def drawn(cell: nn.Module, bound: float, generator: torch.Generator) -> nn.Module:
    """Fill the parameters of a cell of torch from U(-bound, bound), in their order; return it."""
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.copy_(torch.empty(parameter.shape, device="cpu").uniform_(-bound, bound, generator=generator))
    return cell


class LayersCell(nn.Module):
    """One token through all layers: layer i reads what layer i - 1 has just made, and its own state before."""

    def __init__(self, kind: type[nn.Module], hidden_size: int, num_layers: int, generator: torch.Generator):
        super().__init__()
        layers = [skip_init(kind, hidden_size, hidden_size) for _ in range(num_layers)]
        self.layers = nn.ModuleList([drawn(layer, hidden_size**-0.5, generator) for layer in layers])

    def forward(self, state: State, inputs: Tensor, step: int) -> State:
        """Map {"h_1", "h_2", ...}, of an LSTM with {"c_1", ...}, and x_t, all (batch, hidden_size), to the next."""
        after, x = {}, inputs
        for i, layer in enumerate(self.layers, 1):
            if f"c_{i}" in state:
                after[f"h_{i}"], after[f"c_{i}"] = layer(x, (state[f"h_{i}"], state[f"c_{i}"]))
            else:
                after[f"h_{i}"] = layer(x, state[f"h_{i}"])
            x = after[f"h_{i}"]
        return after


class _Recurrent(TokenModel):
    """Layers of one of torch's cells."""

    kind: ClassVar[type[nn.Module]]
    gates: ClassVar[int]
    streams: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        vocab_size: int,
        seq_len: int,
        hidden_size: int = 128,
        num_layers: int = 1,
        coupling: str | None = None,
        coupling_rate: float | str | None = None,
        num_puzzles: int = 0,
        seed: int = 0,
    ):
        check_sizes(hidden_size=hidden_size, num_layers=num_layers)
        weights = 2 * self.gates * hidden_size * (hidden_size + 1) * num_layers
        check_fits(4 * weights, f"weights of {num_layers} layers with hidden_size={hidden_size}")
        generator = torch.Generator().manual_seed(seed)
        cell = coupled(LayersCell(self.kind, hidden_size, num_layers, generator), coupling, coupling_rate)
        super().__init__(vocab_size, seq_len, hidden_size, cell, hidden_size, generator, num_puzzles)
        self.num_layers = num_layers

    def first_values(self) -> Mapping[str, Tensor]:
        """Return zeros for each layer."""
        names = [f"{stream}_{i}" for i in range(1, self.num_layers + 1) for stream in self.streams]
        return {name: torch.zeros(self.embedding.hidden_size) for name in names}

    def features(self, state: State) -> Tensor:
        """Return the hidden state of the last layer."""
        return state[f"h_{self.num_layers}"]


class GRU(_Recurrent):
    """Gated recurrent unit, torch's own: layer i is h_i <- GRUCell(h_{i-1}, h_i), with h_0 the vector of the token.

    Args:
        vocab_size: Number of symbols.
        seq_len: Tokens of a sequence; others are read too.
        hidden_size: Size of a layer, and of the vectors of the tokens.
        num_layers: Layers.
        coupling: "damped", "leapfrog" or "momentum" makes the recursion reversible (see `Damped`, `Leapfrog`,
            `Momentum`); it is then another model. None for the GRU itself.
        coupling_rate: beta, scale or gamma of the coupling, such as "1/4"; None for its default.
        num_puzzles: Must be 0.
        seed: Seed of the initial weights, uniform as torch has them.

    Cost:
        One call of each cell per token, from Python: slower than torch.nn.GRU, which has BPTT's gradient alone.
    Not recommended when:
        The exact gradient fits into memory and nothing else is asked for: torch.nn.GRU is faster.
    Reference:
        Cho et al. 2014, arXiv 1406.1078.

    Raises:
        ValueError: A size is below 1, or the coupling is unknown.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import CheckpointedBPTT
        >>> from loopgrad.models import GRU
        >>> model = GRU(vocab_size=27, seq_len=64, hidden_size=32)
        >>> output = model(None, torch.zeros(2, 64, dtype=torch.int64), None, CheckpointedBPTT())
        >>> tuple(output.logits.shape), list(output.state)
        ((2, 64, 27), ['h_1'])
    """

    references = ("cho2014learning",)
    kind, gates, streams = nn.GRUCell, 3, ("h",)


class LSTM(_Recurrent):
    """Long short-term memory, torch's own: layer i is (h_i, c_i) <- LSTMCell(h_{i-1}, (h_i, c_i)).

    Args:
        vocab_size: Number of symbols.
        seq_len: Tokens of a sequence; others are read too.
        hidden_size: Size of a layer, and of the vectors of the tokens.
        num_layers: Layers.
        coupling: As in `GRU`.
        coupling_rate: As in `GRU`.
        num_puzzles: Must be 0.
        seed: Seed of the initial weights, uniform as torch has them.

    Not recommended when:
        The exact gradient fits into memory and nothing else is asked for: torch.nn.LSTM is faster.
    Reference:
        Hochreiter and Schmidhuber 1997, Neural Computation 9(8).

    Example:
        >>> import torch
        >>> from loopgrad.gradients import TruncatedBPTT
        >>> from loopgrad.models import LSTM
        >>> model = LSTM(vocab_size=27, seq_len=64, hidden_size=32, num_layers=2)
        >>> output = model(None, torch.zeros(2, 64, dtype=torch.int64), None, TruncatedBPTT(num_steps=16))
        >>> list(output.state)
        ['h_1', 'c_1', 'h_2', 'c_2']
    """

    references = ("hochreiter1997long",)
    kind, gates, streams = nn.LSTMCell, 4, ("h", "c")
