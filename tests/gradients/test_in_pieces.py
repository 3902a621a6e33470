"""A recursion cut into pieces by `start=`, a coupled state handed on: the whole one, to the bit."""

import pytest
import torch

from loopgrad.gradients import BPTT, ReversibleBPTT, Stationary
from loopgrad.models import Damped, Leapfrog, Momentum

COUPLINGS = {
    "leapfrog": lambda cell: Leapfrog(cell, scale=1 / 32),
    "damped": Damped,
    "damped by a quarter": lambda cell: Damped(cell, beta="1/4"),
    "momentum": Momentum,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", COUPLINGS)
def test_a_coupled_state_goes_from_piece_to_piece_without_losing_a_bit(name, dtype):
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 8).to(dtype)
    cell = COUPLINGS[name](Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear))
    z, x = torch.randn(4, 8, dtype=dtype), torch.randn(4, 8, dtype=dtype)
    losses = {"readout": lambda state, *_: state.square().sum(1), "save": "sum"}
    whole = BPTT()(cell, cell.couple(z), x, 32, **losses)
    expected = torch.autograd.grad(whole.outputs.mean(), list(linear.parameters()))
    for estimator in (BPTT(), ReversibleBPTT()):
        state, total = cell.couple(z), 0
        for start in range(0, 32, 8):
            rollout = estimator(cell, state, x, 8, start=start, **losses)
            state, total = rollout.state, total + rollout.outputs
        assert torch.equal(cell.read(state), cell.read(whole.state))
        tolerance = 20 * torch.finfo(dtype).eps  # parts of a sum in another order
        for found, one in zip(torch.autograd.grad(total.mean(), list(linear.parameters())), expected, strict=True):
            torch.testing.assert_close(found, one, rtol=tolerance, atol=tolerance * one.abs().max().item())
