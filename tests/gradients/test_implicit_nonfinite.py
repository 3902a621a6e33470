"""What is not finite reaches the loss, whatever searches for the fixed point."""

import pytest
import torch

from loopgrad.gradients import ImplicitGradient, Stationary, TruncatedBPTT
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


class Reads(torch.nn.Module):
    """Update t reads what `read` takes of inputs."""

    def __init__(self, read):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.read = torch.nn.Linear(2, 2).double(), read

    def forward(self, state, inputs, step):
        return torch.tanh(self.linear(state) + self.read(inputs, step))


LAYOUTS = {  # what an update reads, and the inputs of some of the samples
    "time first": (lambda x, t: x[t % len(x)], lambda x, rows: x[:, rows]),
    "a table of as many rows": (lambda x, t: x[t % len(x), 0], lambda x, rows: x),
    "one sum for all": (lambda x, t: x.sum((0, 1)), lambda x, rows: x),
    "batch first": (lambda x, t: x[:, t % x.shape[1]], lambda x, rows: x[rows]),
}
GATES = {
    "implicit": ImplicitGradient(forward_rtol=10, max_gradient_error=10),
    "fallback": ImplicitGradient(forward_rtol=0, max_gradient_error=0, fallback=TruncatedBPTT(2)),
    "solved forward": ImplicitGradient(forward=Iteration(), forward_rtol=1e-6),
}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_of_as_many_rows_as_samples_are_not_mistaken_for_them(layout, lost, gate):
    """The gradient of the other samples is that of a batch without the lost one, whatever the rows of inputs are."""
    read, of = LAYOUTS[layout]
    cell, x, z = Reads(read), torch.randn(3, 3, 2).double(), torch.randn(3, 2).double()
    z[lost] = torch.nan
    rows = [row for row in range(3) if row != lost]
    last = GATES[gate](cell, z, x, 3).state[rows]
    alone = GATES[gate](cell, z[rows], of(x, rows), 3).state
    assert torch.equal(last, alone)
    for got, wanted in zip(
        *(torch.autograd.grad(s.square().sum(), [*cell.parameters()]) for s in (last, alone)), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gate", ["implicit", "fallback"])
@pytest.mark.parametrize("value", [torch.nan, 1e308])
def test_rows_of_inputs_that_lose_a_sample_are_taken_out(value, gate):
    cell = Reads(lambda x, t: (x * 1e3 if t else x.nan_to_num(posinf=0).clamp(-1, 1)).sin())
    x, z, rows = torch.randn(3, 2).double(), torch.randn(3, 2).double(), [0, 2]
    x[1] = value
    last, alone = GATES[gate](cell, z, x, 3).state[rows], GATES[gate](cell, z[rows], x[rows], 3).state
    for got, wanted in zip(
        *(torch.autograd.grad(s.square().sum(), [*cell.parameters()]) for s in (last, alone)), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


def test_a_lost_sample_whose_inputs_cannot_be_taken_out_is_heard_of():
    """Time first, and the sample's column is not finite: no row of it is the sample's."""
    cell, x = Reads(lambda x, t: x[t]), torch.randn(3, 3, 2).double()
    x[:, 2] = torch.nan
    state = GATES["implicit"](cell, torch.zeros(3, 2).double(), x, 3).state
    assert torch.autograd.grad(state[:2].square().sum(), cell.linear.weight)[0].isnan().any()
