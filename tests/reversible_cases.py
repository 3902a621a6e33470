"""Couplings of a bounded cell, and their gradients."""

import pytest
import torch
from problems import loss_of
from torch import nn

from loopgrad.models import Damped, Leapfrog, Momentum

COUPLINGS = {
    "damped 1/2": lambda cell: Damped(cell),
    "damped 1/4": lambda cell: Damped(cell, "1/4"),
    "damped 1/8": lambda cell: Damped(cell, "1/8"),
    "damped 4/5": lambda cell: Damped(cell, "4/5"),
    "damped per update": lambda cell: Damped(cell, "1/4", per="update"),
    "leapfrog": lambda cell: Leapfrog(cell, 1 / 32),
    "momentum 7/8": lambda cell: Momentum(cell, "7/8"),
}


every_coupling = pytest.mark.parametrize("coupling", COUPLINGS)


REWRITING = ("buffers", "normalised")


class Mixing(nn.Module):
    """A bounded cell with a parameter that it uses twice."""

    def __init__(self, size: int = 8):
        super().__init__()
        self.into, self.out, self.gain = (
            nn.Linear(size, 2 * size),
            nn.Linear(2 * size, size),
            nn.Parameter(torch.ones(size)),
        )

    def forward(self, state, inputs, step):
        hidden = torch.tanh(self.into(state * self.gain + inputs))
        return torch.tanh(self.out(hidden)) * self.gain


def problem(coupling, dtype=torch.float32):
    torch.manual_seed(0)
    cell = COUPLINGS[coupling](Mixing()).to(dtype)
    return cell, torch.randn(3, 8).to(dtype).requires_grad_(), torch.randn(3, 8).to(dtype).requires_grad_()


def gradients(estimator, cell, z, x, num_steps):
    state = estimator(cell, z, x, num_steps).state
    return state, torch.autograd.grad(loss_of(state), [z, x, *cell.parameters()])
