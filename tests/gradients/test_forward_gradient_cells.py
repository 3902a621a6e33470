"""Forward gradients of cells with dropout, attention, buffers and operators without a rule, and what is refused."""

import pytest
import torch
from cells import build
from forward_cases import WAYS, every_way, flat, standard
from problems import leaves_of, loop, loss_of
from torch import nn
from torch.nn import functional as F

from loopgrad.gradients import BPTT, ForwardGradient, Stationary


@pytest.mark.slow
@every_way
@pytest.mark.parametrize("num_tangents", [1, 3])
def test_dropout_masks_are_those_of_the_forward_pass(way, num_tangents):
    """The state under active dropout equals the plain loop's, and the estimate is of that very masked map."""
    cell, state, inputs, _ = standard()
    masked = Stationary(lambda z, x: torch.dropout(cell(z, x, 0), 0.5, True), parameters=cell)
    torch.manual_seed(7)
    z = ForwardGradient(num_tangents, seed=0, **WAYS[way])(masked, state, inputs, 6).state
    torch.manual_seed(7)
    expected = BPTT()(masked, state, inputs, 6).state
    assert torch.equal(z, expected)
    exact = torch.autograd.grad(expected.sum(), cell.up.weight)[0]
    torch.manual_seed(7)
    many = ForwardGradient(400, seed=0, **{"chunk_size": 400, **WAYS[way]})(masked, state, inputs, 6).state
    found = torch.autograd.grad(many.sum(), cell.up.weight)[0]
    assert F.cosine_similarity(found.flatten(), exact.flatten(), dim=0) > 0.75


CENTRAL = ("state_central", "zeroth_order")  # twice as many passes


@pytest.mark.parametrize("way", [pytest.param(it, marks=pytest.mark.slow) if it in CENTRAL else it for it in WAYS])
def test_attention_takes_a_kernel_with_forward_ad(way):
    problem, witness = build("attention"), build("attention")
    state = ForwardGradient(256, seed=0, **WAYS[way])(problem.cell, problem.state, problem.inputs, 5).state
    last = loop(witness, 5)
    torch.testing.assert_close(leaves_of(state), leaves_of(last), rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(loss_of(state), list(problem.cell.parameters()))
    exact = torch.autograd.grad(loss_of(last), list(witness.cell.parameters()))
    vectors = [torch.cat([g.flatten() for g in grads]) for grads in (found, exact)]
    assert F.cosine_similarity(*vectors, dim=0) > 0.7


def test_an_operator_without_a_rule_is_named_and_central_mode_takes_it():
    table = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))
    index, offsets = torch.tensor([0, 2, 4]), torch.tensor([0, 1, 2])
    cell = Stationary(lambda z, x: torch.tanh(z + F.embedding_bag(index, table, offsets)), parameters=[table])
    z = torch.zeros(3, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="cannot carry tangents.*mode='central'"):
        ForwardGradient(perturb="weights", window=0, seed=0)(cell, z, None, 3)
    ForwardGradient(perturb="weights", window=0, mode="central", seed=0)(cell, z, None, 3).state.sum().backward()
    assert table.grad is not None


def test_buffers_that_updates_write_are_refused_by_name_of_the_way_out():
    problem = build("buffers")
    with pytest.raises(RuntimeError, match="mode='central'"):
        ForwardGradient(seed=0)(problem.cell, problem.state, problem.inputs, 3)


@every_way
def test_a_tensor_that_is_not_named_gets_the_gradient_that_it_gets_if_named(way):
    torch.manual_seed(0)
    hidden = torch.randn(4, dtype=torch.float64, requires_grad=True)
    linear, found = nn.Linear(4, 4, dtype=torch.float64), []
    for named in ([linear], [linear, hidden]):
        cell = Stationary(lambda z, x: torch.tanh(linear(z) * hidden), parameters=named)
        state = ForwardGradient(seed=0, **WAYS[way])(cell, torch.ones(2, 4, dtype=torch.float64), None, 5).state
        found.append(torch.autograd.grad(state.square().sum(), [hidden, *linear.parameters()]))
    assert all(map(torch.equal, *found)) and found[0][0].abs().min() > 0


def test_weights_changed_before_backward_are_noticed():
    cell, state, inputs, weight = standard()
    z = ForwardGradient(seed=0)(cell, state, inputs, 6).state
    with torch.no_grad():
        cell.up.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (z * weight).sum().backward()


def test_no_second_derivative():
    cell, state, inputs, weight = standard()
    z = ForwardGradient(seed=0)(cell, state, inputs, 6).state
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad((z * weight).sum(), cell.up.weight, create_graph=True)


@pytest.mark.slow
def test_samples_that_see_each_other_take_scope_batch():
    cell, state, inputs, weight = standard(batch=6, size=5, hidden=3)
    mixed = Stationary(lambda z, x: cell(z - 0.5 * z.mean(0), x, 0), parameters=cell)
    exact = flat(BPTT(), mixed, state, inputs, weight)
    errors = []
    for scope in ("sample", "batch"):
        estimator = ForwardGradient(64, scope=scope, seed=0)
        draws = torch.stack([flat(estimator, mixed, state, inputs, weight) for _ in range(60)])
        noise = (draws.var(0).sum() / 60).sqrt()
        errors.append(float((draws.mean(0) - exact).norm() / noise))
    assert errors[1] < 2 < 4 < errors[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tangents": 0}, "num_tangents=0"),
        ({"perturb": "weight"}, "perturb='weight'"),
        ({"window": -1}, "window=-1"),
        ({"distribution": "normal"}, "distribution='normal'"),
        ({"mode": "forward"}, "mode='forward'"),
        ({"epsilon": 0.0}, "epsilon=0"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"scope": "row"}, "scope='row'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ForwardGradient(**arguments)


@every_way
def test_nothing_is_carried_where_nothing_wants_a_gradient(way):
    cell, state, inputs, _ = standard()
    estimator = ForwardGradient(seed=0, **WAYS[way])
    with torch.no_grad():
        rollout = estimator(cell, state, inputs, 6)
    assert rollout.stats.cell_evaluations == 6 and rollout.stats.tangents == 0
    assert torch.equal(rollout.state, BPTT()(cell, state, inputs, 6).state)
    assert torch.equal(estimator.generator.get_state(), ForwardGradient(seed=0).generator.get_state())
