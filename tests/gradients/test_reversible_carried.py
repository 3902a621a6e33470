"""ReversibleBPTT on couplings that carry some leaves as the cell gives them: BPTT's values and gradients to the bit."""

import pytest
import torch
from carrying_cells import COUPLINGS, carrying, flagged, loss_of
from undoing import same_state

from loopgrad.gradients import BPTT, ReversibleBPTT, Stationary
from loopgrad.models import Damped, Leapfrog, Momentum

exact = pytest.mark.parametrize("coupling", [name for name in COUPLINGS if name != "float64"])
with_anchors = pytest.mark.parametrize("anchors", [None, 3])


def agree(cell, state, inputs, num_steps, loss, sources, anchors=None):
    found = []
    for estimator in (BPTT(), ReversibleBPTT(anchors=anchors)):
        last = estimator(cell, state, inputs, num_steps).state
        found.append((last, list(torch.autograd.grad(loss(last), [*sources, *cell.parameters()]))))
    return same_state(*found)


@exact
@with_anchors
def test_schedules_counters_and_accumulators(coupling, anchors):
    cell, state, x = carrying()
    sources = [state["z"], state["clock"][1], state["total"], state["seen"]]
    coupled = COUPLINGS[coupling](cell, uncoupled=cell.uncoupled)
    assert agree(coupled, state, x, 13, loss_of, sources, anchors)


@exact
@with_anchors
def test_flags_ids_and_counters(coupling, anchors):
    cell, state, x = flagged()
    state = (*state[:5], torch.zeros(3, 4))

    def loss(state):
        return state[0].sin().sum() + state[5].square().sum()

    assert agree(COUPLINGS[coupling](cell, uncoupled="state[5]"), state, x, 13, loss, state[:1], anchors)
    assert agree(COUPLINGS[coupling](cell), state, x, 13, loss, state[:1], anchors)


@pytest.mark.parametrize("coupling", [Damped, Leapfrog, Momentum])
def test_a_counter_ends_where_it_should_and_a_schedule_multiplies(coupling):
    cell = Stationary(lambda s, x: (torch.tanh(s[0]) * s[2], s[1] + 1.0, s[2] / 2, s[3] + s[0].sum()))
    z = torch.ones(1, 2).requires_grad_()
    start = z, torch.zeros(1), torch.ones(1), torch.zeros(())
    last = ReversibleBPTT()(coupling(cell, uncoupled=("state[1]", "state[2]", "state[3]")), start, None, 8).state
    assert last[1].tolist() == [8] and last[2].tolist() == [2**-8]
    last[3].backward()
    assert z.grad is not None and bool((z.grad != 0).all())


def test_saved_memory_is_that_of_the_carried_leaves():
    linear, z = torch.nn.Linear(8, 8), torch.zeros(4, 8)
    cell = Stationary(lambda s, x: {"z": torch.tanh(linear(s["z"])), "n": s["n"] + 1}, parameters=linear)

    def saved(num_steps):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            ReversibleBPTT()(Leapfrog(cell, 1 / 8), {"z": z, "n": torch.tensor(0)}, None, num_steps)
        return sum(sizes)

    assert saved(64) - saved(8) == 56 * 8


class Remembering(torch.nn.Module):
    """Attends to all states so far, which it keeps in a leaf that grows."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, state, inputs, step):
        weights = torch.softmax((state["past"] @ state["z"].unsqueeze(-1)).squeeze(-1), -1)
        z = torch.tanh(self.linear((weights.unsqueeze(-1) * state["past"]).sum(1)) + inputs)
        return {"z": z, "past": torch.cat([state["past"], z.unsqueeze(1)], 1)}


@exact
@with_anchors
def test_a_leaf_that_grows(coupling, anchors):
    torch.manual_seed(0)
    z, x = (torch.randn(2, 4).requires_grad_() for _ in range(2))
    start = {"z": z, "past": torch.randn(2, 1, 4).requires_grad_()}
    coupled = COUPLINGS[coupling](Remembering(), uncoupled="state['past']")

    def loss(state):
        return state["z"].sin().sum() + state["past"].square().sum()

    assert agree(coupled, start, x, 8, loss, [z, start["past"], x], anchors)
