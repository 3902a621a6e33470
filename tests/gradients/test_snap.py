"""Sparse real-time recurrent learning against dense Jacobians of each sample that a mask by hand leaves."""

from functools import partial

import pytest
import torch
from cells import build
from online_cases import by_hand, masked_by_hand, problem, sources_of, weighed

from loopgrad.gradients import BPTT, RTRL, DiagonalRTRL, SnAp


def of_cell(estimator, cell, readout, state, xs):
    rollout = estimator(cell, state, None, len(xs), xs=xs, readout=readout, save="sum")
    found = torch.autograd.grad(weighed(rollout.state, rollout.outputs), list(cell.parameters()))
    return torch.cat([gradient.flatten() for gradient in found])


def by_bptt(cell, readout, state, xs):
    found = torch.autograd.grad(weighed(*by_hand(cell, readout, state, xs)), list(cell.parameters()))
    return torch.cat([gradient.flatten() for gradient in found])


def immediate(name):
    """Where the weights of a cell act, (features, parameters), said by hand."""
    features, rows = 5, torch.arange(5)
    if name == "gru":  # rows of three gates, of W_x, W_h and their biases
        acts = [rows.repeat(3).repeat_interleave(n) for n in (3, features, 1, 1)]
    else:  # chain: own, next, B and its bias
        acts = [rows, rows[1:], rows.repeat_interleave(3), rows]
    return torch.nn.functional.one_hot(torch.cat(acts), features).T.bool()


def reached(name, num_steps):
    acts = immediate(name)
    if name == "gru":
        return acts if num_steps == 1 else torch.ones_like(acts)
    shifted = torch.zeros_like(acts)
    if num_steps > 1:
        before = reached(name, num_steps - 1)
        shifted[1:] = before[:-1]
        acts = acts | before
    return acts | shifted


@pytest.mark.parametrize("name", ["gru", "chain"])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_keeps_what_a_mask_by_hand_keeps(name, num_steps):
    given = problem(name)
    mask = reached(name, num_steps)
    expected = masked_by_hand(*given, lambda D, J, new: mask * (D @ J + new))
    torch.testing.assert_close(of_cell(SnAp(num_steps), *given), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["gru", "chain"])
def test_the_diagonal_equals_one_by_hand(name):
    given = problem(name)
    mask = immediate(name)
    expected = masked_by_hand(*given, lambda D, J, new: mask * (D.diagonal()[:, None] * J + new))
    torch.testing.assert_close(of_cell(DiagonalRTRL(), *given), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["gru", "lstm", "trm_like", "diagonal", "chain"])
def test_with_many_steps_it_is_exact(name):
    cell, readout, state, xs = given = problem(name)
    rollout = SnAp(1000)(cell, state, None, len(xs), xs=xs, readout=readout, save="sum")
    sources = sources_of(*given)
    found = torch.autograd.grad(weighed(rollout.state, rollout.outputs), sources)
    for a, b in zip(found, torch.autograd.grad(weighed(*by_hand(*given)), sources), strict=True):
        assert (a - b).norm() <= 1e-10 * (1 + b.norm())


def test_more_steps_come_nearer_where_the_recurrent_matrix_is_sparse():
    given = problem("chain", num_steps=12)
    exact = by_bptt(*given)
    errors = [float((of_cell(SnAp(n), *given) - exact).norm() / exact.norm()) for n in range(1, 6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-2 and errors[-1] < 1e-12


def test_the_diagonal_is_exact_on_a_diagonal_unit_and_biased_on_a_gru():
    for name, bound in (("diagonal", 0), ("gru", 1e-2)):
        cell, readout, state, xs = given = problem(name, num_steps=30)
        rollout = DiagonalRTRL()(cell, state, None, len(xs), xs=xs, readout=readout, save="sum")
        sources = sources_of(*given)
        found = torch.autograd.grad(weighed(rollout.state, rollout.outputs), sources)
        expected = torch.autograd.grad(weighed(*by_hand(*given)), sources)
        off = [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]
        assert max(off) < 1e-10 if bound == 0 else max(off) > bound


@pytest.mark.parametrize("estimator", [SnAp(1), DiagonalRTRL()])
def test_saves_a_number_for_each_parameter_and_sample(estimator):
    cell, readout, state, xs = problem("gru")
    rollout = estimator(cell, state.detach(), None, len(xs), xs=xs.detach())
    kept = rollout.state.grad_fn
    while not hasattr(kept, "saved_tensors"):
        kept = kept.next_functions[0][0]
    assert sum(t.numel() for t in kept.saved_tensors) == 3 * sum(p.numel() for p in cell.parameters())


@pytest.mark.parametrize("estimator", [SnAp(1), DiagonalRTRL()])
@pytest.mark.parametrize("cell", ["recurrent", "twice"])
def test_weights_and_inputs_that_are_picked_by_step_are_refused_with_a_way_out(estimator, cell):
    given = build(cell)
    with pytest.raises(RuntimeError, match=r"change from update to update.*RTRL\(\).*as xs"):
        estimator(given.cell, given.state, given.inputs, 6)


@pytest.mark.parametrize("scope", ["sample", "batch"])
@pytest.mark.parametrize("kind", [partial(SnAp, 2), DiagonalRTRL])
def test_a_refusal_names_no_remedy_that_is_refused_too(kind, scope):
    given = build("recurrent")
    with pytest.raises(RuntimeError, match=r"change from update to update.*RTRL\(\).*as xs") as caught:
        kind(scope=scope)(given.cell, given.state, given.inputs, 6)
    assert ("use RTRL()" in str(caught.value)) == (scope == "batch")
    assert ("samples see each other" in str(caught.value)) == (scope == "sample")


def test_the_error_is_a_bias():
    """It is the same at each call, and of the same forward values as that of BPTT."""
    given = problem("gru")
    one, two = (of_cell(SnAp(1), *given) for _ in range(2))
    assert torch.equal(one, two)
    cell, _, state, xs = given
    states = [estimator(cell, state, None, len(xs), xs=xs).state for estimator in (SnAp(1), BPTT(), RTRL())]
    assert torch.equal(states[0], states[1]) and torch.equal(states[1], states[2])


def test_num_steps_is_checked():
    with pytest.raises(ValueError, match="num_steps=0"):
        SnAp(0)
