"""In which dtype a coupling hands each leaf to the cell, and gives it back."""

import pytest
import torch
from torch import nn
from undoing import gradients_by_bptt, gradients_by_hand, same_state

from loopgrad.gradients import BPTT, ReversibleBPTT, Stationary
from loopgrad.models import Damped, Leapfrog, Momentum

COUPLINGS = {
    "damped": lambda cell, **more: Damped(cell, "1/4", **more),
    "leapfrog": lambda cell, **more: Leapfrog(cell, 1 / 16, **more),
    "momentum": lambda cell, **more: Momentum(cell, "7/8", **more),
}
every_coupling = pytest.mark.parametrize("coupling", COUPLINGS)
LOW, MIDDLE, HIGH = torch.bfloat16, torch.float32, torch.float64


class Mixed(nn.Module):
    """Refuses to read its leaves in other dtypes than they were given in, as products of two dtypes would."""

    def __init__(self, dtypes, own=torch.float32):
        super().__init__()
        self.dtypes = dtypes
        self.linear, self.gain = nn.Linear(4, 4, dtype=own), nn.Parameter(torch.ones(4, dtype=HIGH))

    def forward(self, state, inputs, step):
        assert tuple(leaf.dtype for leaf in state) == self.dtypes
        hidden = torch.tanh(self.linear(state[0].to(self.linear.weight.dtype)))
        rest = [torch.cos(leaf * self.gain.to(leaf.dtype)) for leaf in state[1:]]
        return hidden.to(self.dtypes[0]), *(torch.sin(leaf + hidden.to(leaf.dtype)) for leaf in rest)


def mixed(dtypes, own=torch.float32):
    torch.manual_seed(0)
    return Mixed(dtypes, own), tuple(torch.randn(3, 4).to(dtype).requires_grad_() for dtype in dtypes)


def loss_of(state):
    return sum(leaf.double().sin().sum() for leaf in state)


@every_coupling
@pytest.mark.parametrize(
    ("dtypes", "own"),
    [((MIDDLE, HIGH), MIDDLE), ((HIGH, MIDDLE), MIDDLE), ((LOW, MIDDLE, HIGH), MIDDLE), ((MIDDLE, LOW), LOW)],
)
def test_each_leaf_is_read_and_given_back_in_the_dtype_that_it_was_given_in(coupling, dtypes, own):
    cell, state = mixed(dtypes, own)
    coupled = COUPLINGS[coupling](cell)
    found = []
    for estimator in (BPTT(), ReversibleBPTT()):
        last = estimator(coupled, state, None, 7).state
        assert tuple(leaf.dtype for leaf in last) == dtypes
        found.append([*last, *torch.autograd.grad(loss_of(last), [*state, *cell.parameters()])])
    assert all(map(torch.equal, *found))


@every_coupling
def test_float64_leaves_keep_their_digits(coupling):
    """A float32 reading of the float64 leaf would be off by 1e-8 and more."""
    cell, state = mixed((MIDDLE, HIGH))
    last = BPTT()(COUPLINGS[coupling](cell), state, None, 1).state[1]
    image = cell(state, None, 0)[1]
    expected = {
        "damped": lambda: state[1] * 0.75 + image / 4,
        "leapfrog": lambda: state[1] + image / 16,
        "momentum": lambda: state[1] + image / 8,
    }[coupling]()
    torch.testing.assert_close(last, expected, rtol=0, atol=2.0**-31)


@every_coupling
def test_one_dtype_that_is_not_the_cells_own_is_kept_too(coupling):
    cell, state = mixed((MIDDLE,), own=LOW)
    assert BPTT()(COUPLINGS[coupling](cell), state, None, 3).state[0].dtype == MIDDLE
    bare = Stationary(lambda z, x: torch.tanh(z).where(torch.tensor(z.dtype == HIGH), torch.nan))
    last = BPTT()(COUPLINGS[coupling](bare), torch.ones(1, 2, dtype=HIGH), None, 3).state
    assert last.dtype == HIGH and last.isfinite().all()


@every_coupling
def test_a_dtype_that_is_given_is_that_of_every_coupled_leaf_and_of_no_other(coupling):
    cell, state = mixed((LOW, LOW, HIGH))
    start = (*(leaf.detach().float() for leaf in state[:2]), state[2].detach())
    last = BPTT()(COUPLINGS[coupling](cell, dtype=LOW, uncoupled="state[2]"), start, None, 3).state
    assert tuple(leaf.dtype for leaf in last) == (LOW, LOW, HIGH)


@every_coupling
def test_a_coupled_state_goes_on_in_its_dtypes(coupling):
    cell, state = mixed((MIDDLE, HIGH))
    coupled = COUPLINGS[coupling](cell)
    half = BPTT()(coupled, coupled.couple(state), None, 3).state
    whole = BPTT()(coupled, half, None, 3).state
    assert [leaf.dtype for leaf in coupled.read(whole)] == [MIDDLE, HIGH]


@every_coupling
def test_undoing_by_hand_agrees(coupling):
    cell, state = mixed((LOW, MIDDLE, HIGH))
    coupled, parameters = COUPLINGS[coupling](cell), list(cell.linear.parameters())
    mine, theirs = (by(coupled, state, None, 9, loss_of, parameters) for by in (gradients_by_hand, gradients_by_bptt))
    assert same_state(mine[0], theirs[0]) and all(map(torch.equal, mine[1], theirs[1]))
