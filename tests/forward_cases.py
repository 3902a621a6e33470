"""The standard cell of forward gradients, and every way to estimate its gradient."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

WAYS = {
    "state": {},
    "state_window_3": {"window": 3},
    "state_central": {"mode": "central"},
    "weights": {"perturb": "weights", "window": 0},
    "weights_gaussian": {"perturb": "weights", "window": 0, "distribution": "gaussian"},
    "zeroth_order": {"perturb": "weights", "window": 0, "mode": "central"},
}


every_way = pytest.mark.parametrize("way", WAYS)


class MLP(nn.Module):
    """The standard cell: z <- rms_norm(z + W2 silu(W1 (z + x))), 16 features and about 200 parameters at hidden=6."""

    def __init__(self, size=16, hidden=6):
        super().__init__()
        self.up, self.down = nn.Linear(size, hidden, bias=False), nn.Linear(hidden, size, bias=False)

    def forward(self, state, inputs, step):
        return F.rms_norm(state + self.down(F.silu(self.up(state + inputs))), state.shape[-1:])


def standard(batch=32, size=16, hidden=6, dtype=torch.float64):
    torch.manual_seed(0)
    cell = MLP(size, hidden).to(dtype)
    state = torch.randn(batch, size, dtype=dtype)
    inputs = torch.randn(batch, size, dtype=dtype)
    return cell, state, inputs, torch.randn(batch, size, dtype=dtype)


def flat(estimator, cell, state, inputs, weight, num_steps=8, of_inputs=False):
    inputs = inputs.clone().requires_grad_(of_inputs)
    z = estimator(cell, state, inputs, num_steps).state
    sources = [*cell.parameters(), *([inputs] if of_inputs else [])]
    return torch.cat([g.flatten() for g in torch.autograd.grad((z * weight).sum(), sources)])
