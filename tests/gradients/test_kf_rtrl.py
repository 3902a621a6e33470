"""Kronecker-factored RTRL: exact after one update, two values around the exact one after two, unbiased after more."""

import math

import pytest
import torch
from online_cases import problem, sources_of, weighed
from torch import nn

from loopgrad.gradients import BPTT, KFRTRL, UORO, Stationary
from loopgrad.gradients.kronecker import factored


def flat(estimator, given, save="sum", num_steps=None):
    """Return the gradient by everything of a loss of all answers and of the last state."""
    cell, readout, state, xs = given
    xs_of = xs[:num_steps]
    rollout = estimator(cell, state, None, len(xs_of), xs=xs_of, readout=readout, save=save)
    loss = rollout.outputs.sum() + weighed(rollout.state, torch.zeros(3).double())
    found = torch.autograd.grad(loss, sources_of(*given), materialize_grads=True)
    return torch.cat([it.flatten() for it in found])


def rnn():
    torch.manual_seed(0)
    weight = nn.Parameter(0.7 * torch.randn(4, 4).double())
    cell = Stationary(lambda z, x: torch.tanh(z @ weight.T + x), parameters=[weight])
    z, x = torch.randn(1, 4).double().requires_grad_(), torch.randn(1, 4).double().requires_grad_()
    return cell, weight, z, x


def gradients(estimator, cell, weight, z, x, num_steps):
    state = estimator(cell, z, x, num_steps).state
    return torch.autograd.grad((state * torch.linspace(1, 2, 4)).sum(), [weight, z, x])


@pytest.mark.parametrize("name", ["gru", "lstm", "trm_like", "diagonal", "chain"])
def test_one_update_has_no_noise(name):
    given = problem(name)
    torch.testing.assert_close(
        flat(KFRTRL(seed=0), given, num_steps=1), flat(BPTT(), given, num_steps=1), rtol=1e-11, atol=1e-12
    )


def test_two_updates_have_two_values_whose_mean_is_exact():
    """u (x) A of one sign s holds J + s (p_1 / p_2 u (x) D + p_2 / p_1 a (x) HA), whatever p_1 and p_2."""
    given = rnn()
    exact, found = gradients(BPTT(), *given, 2), [gradients(KFRTRL(seed=seed), *given, 2) for seed in range(12)]
    one = found[0][0]
    other = next(it[0] for it in found if not torch.allclose(it[0], one))
    assert all(min(torch.dist(it[0], one), torch.dist(it[0], other)) < 1e-12 for it in found)
    torch.testing.assert_close((one + other) / 2, exact[0], rtol=1e-12, atol=1e-12)
    # by hand: h_1, h_2, the two terms that are mixed, and their mean sizes
    cell, weight, z, x = given
    with torch.no_grad():
        h1, h2 = cell(z, x, 0), cell(cell(z, x, 0), x, 1)
        A, D = torch.diag(1 - h1[0] ** 2), torch.diag(1 - h2[0] ** 2)
        pushed, g = D @ weight @ A, torch.linspace(1, 2, 4).double()
        p = math.sqrt((pushed.norm() / z.norm()) * (h1.norm() / D.norm()))
        mixed = torch.outer(g @ D, z[0]) * p + torch.outer(g @ pushed, h1[0]) / p
    torch.testing.assert_close((one - exact[0]).abs(), mixed.abs(), rtol=1e-11, atol=1e-12)
    for own in found:
        torch.testing.assert_close(own[1:], exact[1:], rtol=1e-12, atol=1e-12)  # z_0 and inputs are exact


def draws(estimator, name, runs, batch=250):
    """Return (runs, numbers): of each run the mean of the gradients by weights of equal samples, which draw apart."""
    cell, readout, state, xs = problem(name, num_steps=5, batch=1)
    state, xs = (
        torch.utils._pytree.tree_map(lambda it, d=d: it.detach().repeat_interleave(batch, d), tree)
        for tree, d in ((state, 0), (xs, 1))
    )
    found = []
    for _ in range(runs):
        rollout = estimator(cell, state, None, 5, xs=xs, readout=readout, save="sum")
        parts = torch.autograd.grad(rollout.outputs.sum() / batch, list(cell.parameters()))
        found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gru", "lstm", "trm_like"])
def test_the_mean_is_exact_within_its_standard_error_and_the_noise_is_less_than_that_of_uoro(name):
    runs = 40
    exact, found = draws(BPTT(), name, 1, batch=1)[0], draws(KFRTRL(seed=1), name, runs)
    error = found.std(0) / math.sqrt(runs)
    assert ((found.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all()
    assert 0 < error.norm() < 0.1 * exact.norm()
    assert found.std(0).norm() < 0.7 * draws(UORO(seed=1), name, runs).std(0).norm()


def test_draws_differ_and_a_seed_repeats_them():
    given = problem("gru")
    one, two = KFRTRL(seed=3), KFRTRL(seed=3)
    first, second = flat(one, given), flat(one, given)
    assert torch.equal(first, flat(two, given)) and torch.equal(second, flat(two, given))
    assert not torch.allclose(first, second)
    with pytest.raises(ValueError, match="seed=-1"):
        KFRTRL(seed=-1)


@pytest.mark.parametrize("num_steps", [3, 7])
def test_saves_a_vector_and_a_matrix_for_each_weight_and_its_biases(num_steps):
    cell, _, state, xs = problem("gru")
    xs = xs[:num_steps].detach()
    node = KFRTRL(seed=0)(cell, state.detach(), None, num_steps, xs=xs).state.grad_fn
    # features 5, inputs 3, gates 15; biases are exact: 30 numbers for each of five features, with its sample
    assert sorted(tuple(it.shape) for it in node.saved_tensors if it.numel()) == sorted(
        [(3, 3), (3, 5, 15), (3, 5), (3, 5, 15), (3, 5, 30)]
    )


def used_twice():
    linear = nn.Linear(4, 4).double()
    return Stationary(lambda z, x: torch.tanh(linear(torch.tanh(linear(z)) + x)), parameters=linear), "weight"


def of_tokens():
    linear = nn.Linear(2, 2).double()
    return Stationary(lambda z, x: torch.tanh(linear(z.view(-1, 2, 2)).flatten(1) + x), parameters=linear), "weight"


@pytest.mark.parametrize("make", [used_twice, of_tokens])
def test_weights_that_are_in_no_single_product_are_refused_by_name(make):
    cell, name = make()
    with pytest.raises(RuntimeError, match=rf"KFRTRL needs weights .*{name}.*not so.*UORO\(\).*CheckpointedBPTT"):
        KFRTRL(seed=0)(cell, torch.randn(3, 4).double(), torch.randn(3, 4).double(), 4)


def test_a_batch_taken_for_one_row_is_refused():
    cell, _, _, _ = rnn()
    with pytest.raises(RuntimeError, match="several tokens or samples"):
        KFRTRL(seed=0, scope="batch")(cell, torch.randn(3, 4).double(), torch.randn(3, 4).double(), 2)


def test_a_matrix_of_rank_one_is_taken_apart_and_another_is_told():
    torch.manual_seed(0)
    d, a = torch.randn(2, 5).double(), torch.randn(2, 3).double()
    found_a, found_d, off = factored(d.unsqueeze(2) * a.unsqueeze(1))
    torch.testing.assert_close(found_d.unsqueeze(2) * found_a.unsqueeze(1), d.unsqueeze(2) * a.unsqueeze(1))
    assert off < 1e-15 and factored(torch.randn(2, 5, 3).double())[2] > 0.1
    assert all(it.isfinite().all() and not it.any() for it in factored(torch.zeros(2, 5, 3)))
