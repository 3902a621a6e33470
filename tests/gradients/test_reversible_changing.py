"""ReversibleBPTT on carried leaves that do not stay what they were: absent at first, or of another dtype."""

import pytest
import torch
from carrying_cells import COUPLINGS, flagged
from undoing import same_state

from loopgrad.gradients import BPTT, ReversibleBPTT, Stationary


def agree(cell, state, inputs, num_steps, loss, sources, anchors=None):
    found = []
    for estimator in (BPTT(), ReversibleBPTT(anchors=anchors)):
        last = estimator(cell, state, inputs, num_steps).state
        found.append((last, list(torch.autograd.grad(loss(last), [*sources, *cell.parameters()]))))
    return same_state(*found)


@pytest.mark.parametrize("coupling", [name for name in COUPLINGS if name != "float64"])
@pytest.mark.parametrize("anchors", [None, 3])
def test_a_part_that_is_absent_at_first(coupling, anchors):
    cell, state, x = flagged()

    def loss(state):
        return state[0].sin().sum() + state[5].square().sum()

    assert agree(COUPLINGS[coupling](cell), state, x, 13, loss, state[:1], anchors)


@pytest.mark.parametrize(
    ("first", "then"),
    [("float64", "float32"), ("float32", "bfloat16"), ("float32", "float64"), ("bfloat16", "float32")],
)
@pytest.mark.parametrize("coupling", ["damped", "leapfrog", "momentum"])
def test_a_leaf_that_comes_back_in_another_dtype(coupling, first, then):
    torch.manual_seed(0)
    a, z = torch.randn(3, dtype=getattr(torch, first)).requires_grad_(), torch.randn(3).requires_grad_()
    cell = Stationary(lambda s, x: (torch.tanh(s[0] + s[1].float()), (s[1].sin() + s[0]).to(getattr(torch, then))))

    def loss(state):
        return state[0].sin().sum() + state[1].square().sum()

    assert agree(COUPLINGS[coupling](cell, uncoupled="state[1]"), (z, a), None, 5, loss, [z, a])
