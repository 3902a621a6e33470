"""A GRU that reads one character per update, with a loss after each, plain or in a recursion that can be undone."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loopgrad.experiments.benches.gates import open_gates
from loopgrad.gradients import BPTT, Estimator, Rollout, Stationary
from loopgrad.models import Momentum


class LanguageModel(nn.Module):
    """h <- GRU(embedding of character t, h); logits of character t + 1 are linear in h.

    Args:
        vocab_size: Different characters.
        hidden_size: Features of h and of the embedding.
        longest: Biases of the update gate start so that the features forget within times of 1 to `longest` updates,
            their logarithms uniform (as the "chrono" initialisation of Tallec and Ollivier, 2018, arXiv 1804.11188,
            whose times are uniform). The rest starts as torch's own.
        gamma: That of `Momentum`, in which the recursion h <- h + velocity reads GRU(x, h) - h; None for the plain one.
        generator: Source of the weights, which do not depend on gamma.
    """

    def __init__(self, vocab_size: int, hidden_size: int, longest: int, gamma: str | None, generator: torch.Generator):
        super().__init__()
        self.encoder: Any = nn.utils.skip_init(nn.Embedding, vocab_size, hidden_size)
        self.gru: Any = nn.utils.skip_init(nn.GRUCell, hidden_size, hidden_size)
        self.head: Any = nn.utils.skip_init(nn.Linear, hidden_size, vocab_size)
        nn.init.normal_(self.encoder.weight, generator=generator)
        for parameter in (*self.gru.parameters(), *self.head.parameters()):
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5, generator=generator)
        open_gates(self.gru, torch.rand(hidden_size, generator=generator) * torch.tensor(longest).log())
        cell = lambda h, x: self.gru(x["x"], h)  # noqa: E731
        change = lambda h, x: self.gru(x["x"], h) - h  # noqa: E731
        self.cell = Stationary(cell if gamma is None else change, parameters=self.gru)
        if gamma is not None:
            self.cell = Momentum(self.cell, gamma)

    def loss(self, text: Tensor, estimator: Estimator) -> tuple[Tensor, Rollout]:
        """Return the mean cross entropy of the characters after the first, and the rollout.

        Args:
            text: (batch, characters) tokens.
            estimator: Of the gradient.
        """
        rollout = self._rolled_out(text, estimator, "sum")
        return rollout.outputs.mean() / (text.shape[1] - 1), rollout

    def losses(self, text: Tensor) -> Tensor:
        """Return the cross entropy of each character after the first, (batch, characters - 1)."""
        with torch.no_grad():
            return self._rolled_out(text, BPTT(), "all").outputs.t()

    def _rolled_out(self, text: Tensor, estimator: Estimator, save: str) -> Rollout:
        tokens = text.t()  # (characters, batch)
        xs = {"x": self.encoder(tokens[:-1]), "next": tokens[1:]}
        start = self.encoder.weight.new_zeros(len(text), self.gru.hidden_size)
        return estimator(self.cell, start, None, len(tokens) - 1, xs=xs, readout=self._told, save=save)

    def _told(self, h: Tensor, inputs: None, xs: dict[str, Tensor], step: int) -> Tensor:
        return F.cross_entropy(self.head(h), xs["next"], reduction="none")
