"""The inverse that Broyden's forward search has learnt, in place of a solve: beside a dense one, and gated."""

import pytest
import torch
from fixed_point_cases import PROBLEMS, error, gradients, problem, weighted, witness

from loopgrad.gradients import ImplicitGradient
from loopgrad.gradients.solvers import Anderson, Broyden

pytestmark = pytest.mark.usefixtures("float64")
GATED = {"solver": "broyden_estimate", "forward": Broyden(depth=200), "forward_rtol": 1e-9}


def dense_estimate(f, z, steps):
    """Broyden's good method with its inverse as a whole matrix (Sherman and Morrison), for one row."""
    H, step = torch.eye(z.numel()), f(z) - z
    for _ in range(steps - 1):
        move = H @ step
        z = z + move
        after = f(z) - z
        change = step - after
        H = H + torch.outer(move - H @ change, move @ H) / (move @ H @ change)
        step = after
    return z, H


def test_the_gradient_is_that_of_the_dense_inverse_transposed():
    cell, state, inputs, _ = problem("mlp")
    estimator = ImplicitGradient(**{**GATED, "forward_rtol": 0}, check_every=None, on_unconverged="ignore")
    rollout = estimator(cell, state, inputs, 6)
    got = gradients(weighted(rollout.state), cell, inputs)
    b, expected = torch.linspace(-1, 2, 24).view(4, 6), 0
    for i in range(4):
        x = inputs[i : i + 1].detach().requires_grad_()
        z, H = dense_estimate(lambda z, x=x: cell(z[None], x, 0)[0].detach(), state[i], 6)
        torch.testing.assert_close(rollout.state[i].detach(), z, rtol=1e-9, atol=1e-9)
        image = cell(z[None], x, 0)[0]
        found = torch.autograd.grad(image @ (H.T @ b[i]), [*cell.parameters(), x])
        row = torch.zeros(4, 6)
        row[i] = found[-1][0]
        expected = expected + torch.cat([*(g.flatten() for g in found[:-1]), row.flatten()])
        J = torch.autograd.functional.jacobian(lambda z, x=x: cell(z[None], x, 0)[0], z)
        left = b[i] - (torch.eye(6) - J.T) @ (H.T @ b[i])
        assert rollout.stats.verdict.backward_residual[i].item() == pytest.approx(
            (left.norm() / b[i].norm()).item(), rel=1e-6
        )
    assert error(got, expected) < 1e-9


@pytest.mark.parametrize("name", PROBLEMS)
def test_one_product_judges_it_and_what_fails_falls_back(name):
    cell, state, inputs, num_steps = problem(name)
    period = getattr(cell, "period", 1)
    for most, share in ((0.5, None), (1e-12, 0.0)):
        estimator = ImplicitGradient(**GATED, max_gradient_error=most)
        rollout = estimator(cell, state, inputs, num_steps)
        got, verdict = gradients(weighted(rollout.state), cell, inputs), rollout.stats.verdict
        assert verdict.vjps == 1
        if share is not None:
            assert verdict.numbers()["trusted"] == share and rollout.stats.vjps > 2 * period  # the fallback's
        elif verdict.trusted.all():
            assert error(got, witness(name)[0]) < 0.5


def test_the_estimate_is_better_than_none_and_stays_once_a_sample_has_settled():
    cell, state, inputs, _ = problem("mlp")
    found = []
    for steps in (1, 30, 200):  # one step has learnt nothing, and 200 learn no more from rounding
        estimator = ImplicitGradient(**{**GATED, "forward_rtol": 1e-6}, check_every=None, on_unconverged="ignore")
        found.append(estimator(cell, state, inputs, steps))
        weighted(found[-1].state).backward()
    none, learnt, later = (rollout.stats.verdict.backward_residual for rollout in found)
    assert (learnt < 0.8 * none).all()
    torch.testing.assert_close(later, learnt, rtol=1e-3, atol=0)


def test_samples_do_not_see_each_other_and_a_lost_one_is_lost_alone():
    cell, state, inputs, _ = problem("mlp")
    whole = gradients(weighted(ImplicitGradient(**GATED)(cell, state, inputs, 40).state[1:]), cell, inputs)
    with torch.no_grad():
        inputs[0] = torch.nan
    rest = gradients(weighted(ImplicitGradient(**GATED)(cell, state, inputs, 40).state[1:]), cell, inputs)
    assert rest.isfinite().all()
    torch.testing.assert_close(rest, whole, rtol=1e-9, atol=1e-11)


def test_a_search_of_one_step_has_learnt_nothing_and_is_the_one_step_gradient():
    cell, state, inputs, _ = problem("mlp")
    estimator = ImplicitGradient(**GATED, on_unconverged="ignore")
    got = gradients(weighted(estimator(cell, state, inputs, 1).state), cell, inputs)
    image = cell(state, inputs, 0)
    expected = gradients((image * torch.linspace(-1, 2, 24).view(4, 6)).sum(), cell, inputs)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("wrong", [{}, {"forward": Anderson()}, {"forward": Broyden(), "warm_start": True}])
def test_without_what_it_takes_over_it_is_refused(wrong):
    with pytest.raises(ValueError, match=r"give forward=Broyden\(\).* and no warm_start"):
        ImplicitGradient("broyden_estimate", **wrong)
