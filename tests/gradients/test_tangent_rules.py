"""Derivatives taken forward end where those taken backward do: beside float64 BPTT."""

import pytest
import torch
from torch import nn
from torch.nn.functional import embedding

from loopgrad.gradients import BPTT, RTRL, UORO, ForwardGradient, ForwardMode, LowRankES, SnAp


class WithoutGrad(nn.Linear):
    """A part of an update is held out of the gradient, and another one within it is not."""

    def forward(self, state, inputs, step):
        with torch.no_grad():
            held = super().forward(state)
            with torch.enable_grad():
                through = 0.3 * super().forward(state)
        return torch.tanh(super().forward(state) + held + through)


class Padded(nn.Module):
    def __init__(self, padding_idx):
        super().__init__()
        self.linear, self.table, self.padding_idx = nn.Linear(4, 4), nn.Embedding(7, 4, padding_idx=2), padding_idx

    def forward(self, state, inputs, step):
        ids = torch.tensor([1, 2, 3])
        return torch.tanh(
            0.5 * self.linear(state) + self.table(ids) + embedding(ids, self.table.weight, self.padding_idx)
        )


@pytest.mark.parametrize("make", [lambda: WithoutGrad(4, 4), lambda: Padded(3), lambda: Padded(-5)])
@pytest.mark.parametrize("estimator", [RTRL(), SnAp(9), ForwardMode()], ids=lambda it: type(it).__name__)
def test_tangents_end_where_gradients_do(make, estimator):
    torch.manual_seed(0)
    cell, state = make().double(), torch.randn(3, 4).double()
    found, expected = (
        torch.autograd.grad(it(cell, state, None, 4).state.sin().sum(), list(cell.parameters()))
        for it in (estimator, BPTT())
    )
    assert torch.is_grad_enabled() and torch._C._is_fwd_grad_enabled()
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-10 * other.norm()


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1 + 0.5j, 0.7 - 0.2j], dtype=torch.complex128))

    def forward(self, state, inputs, step):
        return 0.5 * (state * self.weight).abs()


@pytest.mark.parametrize(
    "estimator",
    [
        RTRL(),
        UORO(seed=0),
        ForwardMode(),
        LowRankES(seed=0),
        ForwardGradient(seed=0, perturb="weights"),
        ForwardGradient(seed=0, perturb="weights", mode="central"),
    ],
    ids=repr,
)
def test_complex_weights_are_refused_where_tangents_are_real(estimator):
    state = torch.ones(3, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"takes tangents along real numbers, .* is torch.complex128: use Checkpointed"):
        estimator(Complex(), state, None, 3)
