"""A GRU that reads one token per update, and the rolling sums that it is to know at the end or all along."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loopgrad.experiments.benches.gates import chrono, open_gates
from loopgrad.experiments.tasks import RollingSum
from loopgrad.gradients import Estimator, Rollout

Target = Literal["sum", "modulo"]


class Reader(nn.Module):
    """h <- GRU(h, token t): state (batch, hidden), inputs tokens (batch, length).

    Args:
        modulus: Number of tokens.
        hidden_size: Features of h.
        length: Tokens of a sequence. Gates start open to the past, see `gates.chrono`; the rest starts as torch's own.
        generator: Source of the weights.
    """

    def __init__(self, modulus: int, hidden_size: int, length: int, generator: torch.Generator):
        super().__init__()
        self.modulus = modulus
        self.gru: Any = nn.utils.skip_init(nn.GRUCell, modulus, hidden_size)
        for parameter in self.gru.parameters():
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5, generator=generator)
        open_gates(self.gru, chrono(hidden_size, length, generator))

    def forward(self, state: Tensor, inputs: Tensor, step: int) -> Tensor:
        """Read the token of this update."""
        return self.gru(F.one_hot(inputs[:, step], self.modulus).to(state.dtype), state)


class ScoredReader(nn.Module):
    """A `Reader` that names the sum so far, modulo m, after every token, and adds up its losses.

    State: {"h": (batch, hidden), "loss": (batch, 1)}; inputs: {"tokens", "sums"}, (batch, length) each.
    """

    def __init__(self, modulus: int, hidden_size: int, length: int, generator: torch.Generator):
        super().__init__()
        self.reader = Reader(modulus, hidden_size, length, generator)
        self.head = _linear(hidden_size, modulus, generator)

    def forward(self, state: dict[str, Tensor], inputs: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Read a token, and add what the loss of its sum is in the mean over the sequence."""
        h, sums = self.reader(state["h"], inputs["tokens"], step), inputs["sums"]
        loss = F.cross_entropy(self.head(h), sums[:, step], reduction="none") / sums.shape[1]
        return {"h": h, "loss": state["loss"] + loss.unsqueeze(1)}


def _linear(size: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Return a linear map as torch begins it, from a generator."""
    linear: Any = nn.utils.skip_init(nn.Linear, size, outputs)
    nn.init.kaiming_uniform_(linear.weight, a=5**0.5, generator=generator)
    nn.init.uniform_(linear.bias, -(size**-0.5), size**-0.5, generator=generator)
    return linear


@dataclass(frozen=True)
class RollingSums:
    """Tokens 0..m-1, uniform, and what is to be known of their sum.

    Args:
        target: "sum": the sum of all tokens, centred and over its standard deviation, from the last state by a linear
            head; mean square error, 1 for knowing nothing. "modulo": the sum so far modulo m after every token; cross
            entropy, log m for knowing nothing.
        length: Tokens of a sequence, one per update.
        modulus: m.
        data_seed: Seed of the held-out sequences, 512 at most; training never shows them.
    """

    target: Target
    length: int
    modulus: int = 5
    data_seed: int = 0

    def __post_init__(self) -> None:
        if self.target not in get_args(Target):
            raise ValueError(f"target={self.target!r} must be one of {', '.join(get_args(Target))}")
        self._task()

    def model(self, hidden_size: int, seed: int) -> nn.ModuleDict:
        """Return a cell, and a head beside it where the head reads the last state alone."""
        sizes = (self.modulus, hidden_size, self.length)
        generator = torch.Generator().manual_seed(seed)
        if self.target == "modulo":
            return nn.ModuleDict({"cell": ScoredReader(*sizes, generator)})
        return nn.ModuleDict({"cell": Reader(*sizes, generator), "head": _linear(hidden_size, 1, generator)})

    def batch(self, seed: int, step: int, batch_size: int) -> Tensor:
        """Return tokens of a training step, (batch, length)."""
        return self._task().train_batch(seed, step, batch_size).inputs

    def held_out(self) -> Tensor:
        """Return tokens of the held-out sequences."""
        return self._task().test_set().inputs

    def loss(self, model: Any, tokens: Tensor, estimator: Estimator) -> tuple[Tensor, Rollout]:
        """Return the mean loss of these sequences, and the rollout."""
        h = torch.zeros(len(tokens), (model["head"] if "head" in model else model["cell"].head).in_features)
        if self.target == "modulo":
            start: Any = {"h": h, "loss": torch.zeros(len(tokens), 1)}
            inputs = {"tokens": tokens, "sums": tokens.cumsum(1) % self.modulus}
            rollout = estimator(model["cell"], start, inputs, self.length)
            return rollout.state["loss"].mean(), rollout
        rollout = estimator(model["cell"], h, tokens, self.length)
        deviation = (self.length * (self.modulus**2 - 1) / 12) ** 0.5
        wanted = (tokens - (self.modulus - 1) / 2).sum(1) / deviation
        return F.mse_loss(model["head"](rollout.state).squeeze(1), wanted), rollout

    def _task(self) -> RollingSum:
        return RollingSum(length=self.length, modulus=self.modulus, data_seed=self.data_seed)
