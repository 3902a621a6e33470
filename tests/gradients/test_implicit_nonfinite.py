"""What is not finite reaches the loss, whatever searches for the fixed point."""

import pytest
import torch

from loopgrad.gradients import ImplicitGradient, Stationary
from loopgrad.gradients.solvers import Anderson, Broyden, Iteration

SEARCHES = ["unroll", Iteration(), Iteration(0.5), Anderson(), Broyden()]


def problem(*shape):
    torch.manual_seed(0)
    linear = torch.nn.Linear(shape[-1], shape[-1])
    with torch.no_grad():
        linear.weight *= 0.3
    return linear, Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear), torch.zeros(shape)


@pytest.mark.parametrize("search", SEARCHES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_a_number_makes_the_loss_none(search, value):
    linear, _, z = problem(3, 4)
    cell = Stationary(lambda z, x: linear(z) + x, parameters=linear)
    with torch.no_grad():
        linear.weight[0, 0] = value
    assert not ImplicitGradient(forward=search)(cell, z + 1, torch.ones(3, 4), 20).state.isfinite().any(1).all()


@pytest.mark.parametrize("search", SEARCHES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4)])
def test_a_sample_that_is_not_finite_stays_so_and_leaves_the_others_alone(search, value, shape):
    linear, _, z = problem(*shape)
    cell = Stationary(lambda z, x: 0.3 * torch.tanh(linear(z)) + x, parameters=linear)
    x = torch.ones(shape)
    x[1, ..., 0] = value
    state = ImplicitGradient(forward=search)(cell, z, x, 20).state
    good = ImplicitGradient(forward=search)(cell, z, torch.ones(shape), 20).state
    assert state.flatten(1).isfinite().all(1).tolist() == [True, False, True]
    torch.testing.assert_close(state[[0, 2]], good[[0, 2]])
