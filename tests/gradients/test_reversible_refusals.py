"""What ReversibleBPTT finds out and refuses: cells that differ from run to run, writes, hidden tensors."""

import warnings

import pytest
import torch
from cells import build
from problems import loss_of
from reversible_cases import REWRITING, Mixing, problem
from torch import nn

from loopgrad.gradients import BPTT, CheckpointedBPTT, ReversibleBPTT, Stationary
from loopgrad.gradients.recompute import Conditions
from loopgrad.gradients.untouched import Autocast
from loopgrad.models import Damped, Leapfrog, Momentum


def noisy():
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(4, 4)
    return Stationary(lambda z, x: torch.tanh(linear(z)) + 1e-7 * torch.rand(4, generator=generator), parameters=linear)


def test_a_cell_that_is_not_the_same_twice_is_found_out():
    z = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    state = ReversibleBPTT()(Leapfrog(noisy()), z, None, 33).state
    with pytest.raises(RuntimeError, match="first state"):
        state.sum().backward()
    state = ReversibleBPTT(verify="warn")(Leapfrog(noisy()), z, None, 33).state
    with pytest.warns(UserWarning, match="first state"):
        state.sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ReversibleBPTT(verify="off")(Leapfrog(noisy()), z, None, 33).state.sum().backward()


class Cached(nn.Module):
    """Reads what it has kept of the updates before: a state outside of the state."""

    def __init__(self):
        super().__init__()
        self.linear, self.past = nn.Linear(4, 4), []

    def forward(self, state, inputs, step):
        self.past = [*self.past[-2:], state.detach()]
        return torch.tanh(self.linear(state)) + 0.1 * sum(self.past)


@pytest.mark.parametrize("cell", [noisy, Cached])
@pytest.mark.parametrize("couple", [Leapfrog, Momentum, Damped])
def test_an_anchor_does_not_hide_that_a_state_was_not_met_again(cell, couple):
    z = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    state = ReversibleBPTT(anchors=4)(couple(cell()), z, None, 10).state
    with pytest.raises(RuntimeError, match="the state before update 8 again"):
        state.sum().backward()


@pytest.mark.parametrize("hazard", ["autocast", "dropout", "train flag"])
def test_a_condition_that_is_not_met_again_is_found_out(hazard, monkeypatch):
    """With the restoring of one condition taken out, verification must see it."""
    case = build("dropout", torch.float32)
    cell = Leapfrog(case.cell, 0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=hazard == "autocast"):
        if hazard == "autocast":
            cell.eval()
        state = ReversibleBPTT()(cell, case.state, case.inputs, 17).state
    noted = state.grad_fn.next_functions[0][0]
    conditions = next(n for n in reachable(noted) if hasattr(n, "run")).run.conditions
    if hazard == "autocast":
        conditions.autocast = Autocast.now()
    elif hazard == "dropout":
        monkeypatch.setattr(Conditions, "set_generators", lambda self, states: None)
    else:
        conditions.training = [False] * len(conditions.training)
    with pytest.raises(RuntimeError, match="first state"):
        state.sum().backward()


def reachable(node):
    queue, seen = [node], set()
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            queue += [child for child, _ in node.next_functions]
    return seen


def test_an_exhausted_grid_is_found_out():
    cell = Leapfrog(Stationary(lambda z, x: torch.sin(z) + x))
    z, x = torch.full((1, 4), 0.3, requires_grad=True), torch.full((1, 4), 2.0**31)
    state = ReversibleBPTT()(cell, z, x, 64).state
    with pytest.raises(RuntimeError, match=r"beyond 2\^20"):
        state.sum().backward()


@pytest.mark.parametrize("cell", REWRITING)
def test_an_update_that_rewrites_buffers_is_refused(cell):
    case = build(cell)
    with pytest.raises(RuntimeError, match="buffer.*CheckpointedBPTT"):
        ReversibleBPTT()(Damped(case.cell), case.state, case.inputs, 5)


@pytest.mark.parametrize("estimator", [ReversibleBPTT(), CheckpointedBPTT()])
def test_a_buffer_changed_before_backward_is_refused(estimator):
    case = build("buffers")
    case.cell.eval()
    case.cell.forward = lambda state, inputs, step: torch.tanh(case.cell.norm(case.cell.linear(state)) + inputs)
    state = estimator(Damped(case.cell), case.state, case.inputs, 5).state
    case.cell.norm.running_mean += 1
    with pytest.raises(RuntimeError, match="running_mean was changed between"):
        state.sum().backward()


def test_updates_in_place_are_refused():
    linear = nn.Linear(4, 4)
    x = torch.ones(2, 4)
    cell = Leapfrog(Stationary(lambda z, x: torch.tanh(linear(z)) + x.add_(1), parameters=linear))
    with pytest.raises(RuntimeError, match="in place"):
        ReversibleBPTT()(cell, torch.zeros(2, 4), x, 5)


def test_a_parameter_changed_before_backward_is_refused():
    cell, z, x = problem("damped 1/2")
    state = ReversibleBPTT()(cell, z, x, 5).state
    with torch.no_grad():
        cell.cell.gain += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        state.sum().backward()


def test_a_cell_that_cannot_be_undone_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"Damped\(Mixing\(\.\.\.\)\).*CheckpointedBPTT"):
        ReversibleBPTT()(Mixing(), torch.zeros(1, 8), torch.zeros(1, 8), 4)


@pytest.mark.parametrize(
    ("make", "safe"),
    [
        (lambda c: Damped(c, "1/2", arithmetic="float32"), 40),
        (lambda c: Damped(c, "1/2", arithmetic="float64"), 96),
        (lambda c: Damped(c, "4/5", arithmetic="float64"), 41),
        (lambda c: Momentum(c, "1/2", arithmetic="float32"), 20),
    ],
)
def test_rounding_arithmetic_is_refused_beyond_its_length_unless_anchored(make, safe):
    torch.manual_seed(0)
    cell, z, x = make(Mixing()), torch.randn(3, 8), torch.randn(3, 8)
    assert cell.safe_length == safe
    with pytest.raises(ValueError, match=rf"{safe} updates.*anchors={safe}"):
        ReversibleBPTT()(cell, z, x, safe + 1)
    with pytest.raises(ValueError, match=rf"anchors={safe}"):
        ReversibleBPTT(anchors=safe + 1)(cell, z, x, 4 * safe)
    ours = [
        torch.autograd.grad(loss_of(e(cell, z, x, 300).state), list(cell.parameters()))
        for e in (ReversibleBPTT(anchors=10), BPTT())
    ]
    for mine, theirs in zip(*ours, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"verify": "yes"}, "verify"), ({"anchors": 0}, "anchors"), ({"anchors": 2.0}, "anchors")],
)
def test_wrong_choices_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReversibleBPTT(**arguments)
