"""A network that must remember: bits that it names as they come, and a question about the first one."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loopgrad.experiments.benches.gates import chrono, open_gates
from loopgrad.gradients import Estimator, Stationary

ASKED = 8  # updates at the end of a sequence that are asked for what came first
STARTS = ("uniform", "chrono")


class Recall(nn.Module):
    """A GRU that reads bits, and a head that names the one just read, and after the delay the first.

    Args:
        hidden_size: Features.
        delay: Updates after which the first bit is asked for.
        generator: Source of the weights.
        start: "uniform": as torch's own; "chrono": the same with gates that are open to the past, see `gates.chrono`.
    """

    def __init__(self, hidden_size: int, delay: int, generator: torch.Generator, start: str = "uniform"):
        super().__init__()
        self.delay, self.gru, self.head = delay, nn.GRUCell(3, hidden_size), nn.Linear(hidden_size, 2)
        with torch.no_grad():
            for weight in self.parameters():
                weight.uniform_(-(hidden_size**-0.5), hidden_size**-0.5, generator=generator)
        if start == "chrono":
            open_gates(self.gru, chrono(hidden_size, delay + ASKED, generator))

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return inputs (updates, batch, 3), which are the first bit, a fresh bit and the question, and labels."""
        steps = self.delay + ASKED
        bits, first = (torch.randint(2, shape, generator=generator) for shape in ((steps, size), (size,)))
        asked = torch.arange(steps) >= self.delay
        x = torch.zeros(steps, size, 3, dtype=self.head.weight.dtype)
        x[0, :, 0] = 2 * first.to(x.dtype) - 1
        x[:, :, 1] = 2 * bits.to(x.dtype) - 1
        x[:, :, 2] = asked.to(x.dtype).unsqueeze(1)
        return x, torch.where(asked.unsqueeze(1), first, bits)

    def losses(self, x: Tensor, labels: Tensor, estimator: Estimator, question: bool = False) -> tuple[Tensor, Any]:
        """Return the mean cross entropy of all updates, or of those after the question alone, and the stats."""
        cell = Stationary(lambda z, x: self.gru(x, z), parameters=self.gru)
        weights = torch.full((len(x),), 1 / len(x)).to(x)
        if question:
            weights = torch.where(torch.arange(len(x)) >= self.delay, 1 / ASKED, 0.0).to(x)

        def loss(z: Tensor, inputs: Any, x: Tensor, step: int) -> Tensor:
            return weights[step] * F.cross_entropy(self.head(z), labels[step], reduction="none")

        start = x.new_zeros(x.shape[1], self.gru.hidden_size)
        rollout = estimator(cell, start, None, len(x), xs=x, readout=loss, save="sum")
        return rollout.outputs.mean(), rollout.stats

    def gradient(self, x: Tensor, labels: Tensor, estimator: Estimator) -> Tensor:
        """Return the gradient by the weights of the GRU; that of the head is exact under all."""
        found = torch.autograd.grad(self.losses(x, labels, estimator)[0], list(self.gru.parameters()))
        return torch.cat([gradient.flatten() for gradient in found])
