"""The gate of an implicit gradient: which samples are trusted, what the others get, and what is not finite."""

import warnings

import pytest
import torch
from fixed_point_cases import SOLVERS, error, gradients, problem, weighted
from torch import nn

from loopgrad.gradients import BPTT, ImplicitGradient, Stationary, TruncatedBPTT

pytestmark = pytest.mark.usefixtures("float64")


def diverging():
    """A gated cell that wanders on: its Jacobian's spectral radius is above one."""
    torch.manual_seed(0)
    linear = nn.Linear(8, 8)
    with torch.no_grad():
        linear.weight.copy_(2.5 * torch.randn(8, 8) / 8**0.5)
    cell = Stationary(lambda z, x: torch.sin(linear(z) + 0.3 * x), parameters=linear)
    return cell, torch.randn(16, 8), torch.randn(16, 8, requires_grad=True), 16


@pytest.mark.parametrize("fallback", [TruncatedBPTT(num_steps=4), TruncatedBPTT(num_cycles=1), BPTT()])
def test_without_a_fixed_point_the_gradient_is_the_fallbacks(fallback):
    cell, state, inputs, num_steps = diverging()
    rollout = ImplicitGradient(fallback=fallback)(cell, state, inputs, num_steps)
    got = gradients(weighted(rollout.state), cell, inputs)
    own = gradients(weighted(fallback(cell, state, inputs, num_steps).state), cell, inputs)
    exact = gradients(weighted(BPTT()(cell, state, inputs, num_steps).state), cell, inputs)
    assert not rollout.stats.verdict.trusted.any() and rollout.stats.verdict.fallback
    assert error(got, own) < 1e-12
    cosine, floor = (torch.cosine_similarity(g, exact, dim=0) for g in (got, own))
    assert cosine >= floor - 1e-12
    assert rollout.stats.verdict.vjps == 0, "nothing was solved for samples whose forward residual says no"


def mixed():
    """Samples of the same cell with and without a fixed point: the input is the gain of each."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 6, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.linalg.qr(torch.randn(6, 6))[0])
    cell = Stationary(lambda z, x: torch.sin(x[:, :1] * linear(z) + x[:, 1:]), parameters=linear)
    gains = torch.tensor([0.3, 3.0, 0.5, 2.7, 0.6]).unsqueeze(1)
    return cell, torch.randn(5, 6), torch.cat([gains, torch.randn(5, 6)], dim=1).requires_grad_(), 60


def test_each_sample_is_judged_by_itself():
    cell, state, inputs, num_steps = mixed()
    rollout = ImplicitGradient(rtol=1e-8, max_vjps=60)(cell, state, inputs, num_steps)
    (got,) = torch.autograd.grad(weighted(rollout.state), inputs)
    (exact,) = torch.autograd.grad(weighted(BPTT()(cell, state, inputs, num_steps).state), inputs)
    (own,) = torch.autograd.grad(weighted(TruncatedBPTT(num_steps=8)(cell, state, inputs, num_steps).state), inputs)
    settled = torch.tensor([True, False, True, False, True])
    assert torch.equal(rollout.stats.verdict.trusted, settled)
    torch.testing.assert_close(got[settled], exact[settled], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(got[~settled], own[~settled], rtol=1e-12, atol=1e-12)
    numbers = rollout.stats.numbers()
    assert numbers["trusted"] == 0.6 and numbers["forward_residual_max"] > 0.1


def test_the_estimate_refuses_what_the_forward_residual_alone_would_trust():
    """Near a spectral radius of one a small residual is multiplied: the state is 1/(1 - rho) residuals away."""
    w = torch.tensor([0.999], requires_grad=True)
    cell = Stationary(lambda z, x: w * torch.sin(z) + x, parameters=[w])
    x = torch.full((1, 1), 1e-4)
    rollout = ImplicitGradient(forward_rtol=1e-2, max_gradient_error=0.3)(cell, torch.zeros(1, 1), x, 120)
    weighted(rollout.state).backward()
    verdict = rollout.stats.verdict
    assert verdict.forward_residual < 1e-2 and verdict.amplification > 30 and not verdict.trusted.any()


@pytest.mark.parametrize("num_steps", [8, 15, 30])
def test_the_estimate_is_of_the_size_of_the_error_of_each_sample(num_steps):
    cell, state, inputs, long = problem("mlp")
    (exact,) = torch.autograd.grad(weighted(BPTT()(cell, state, inputs, 4 * long).state), inputs)
    rollout = ImplicitGradient(rtol=1e-3, max_vjps=60, on_unconverged="ignore")(cell, state, inputs, num_steps)
    (got,) = torch.autograd.grad(weighted(rollout.state), inputs)
    errors = (got - exact).norm(dim=1) / exact.norm(dim=1)
    ratio = rollout.stats.verdict.estimate / errors
    assert (errors > 1e-9).all() and (ratio > 0.1).all() and (ratio < 15).all()


def test_raise_names_fraction_and_residuals_and_warn_warns():
    cell, state, inputs, num_steps = mixed()
    rollout = ImplicitGradient(on_unconverged="raise")(cell, state, inputs, num_steps)
    with pytest.raises(RuntimeError, match=r"40% of 5 samples .* forward residual .*largest.*max_gradient_error"):
        weighted(rollout.state).backward()
    rollout = ImplicitGradient(on_unconverged="warn")(cell, state, inputs, num_steps)
    with pytest.warns(UserWarning, match="40% of 5 samples"):
        warned = torch.autograd.grad(weighted(rollout.state), inputs)[0]
    rollout = ImplicitGradient(on_unconverged="ignore")(cell, state, inputs, num_steps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ignored = torch.autograd.grad(weighted(rollout.state), inputs)[0]
    assert torch.equal(warned, ignored) and rollout.stats.numbers()["trusted"] == 0.6  # ignored, yet on record


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("where", ["state", "inputs", "cotangent"])
def test_what_is_not_finite_in_one_sample_stays_there(solver, where):
    cell, state, inputs, num_steps = problem("mlp")
    clean = inputs.detach().clone()
    estimator = ImplicitGradient(solver=solver, rtol=1e-8, max_vjps=100)
    keep = torch.tensor([True, True, False, True])
    loss = (estimator(cell, state, clean.requires_grad_(), num_steps).state[keep] ** 2).sum()
    expected = torch.autograd.grad(loss, [clean, *cell.parameters()])
    dirty, start = inputs.detach().clone(), state.clone()
    if where == "state":
        start[2] = torch.inf
    if where == "inputs":
        dirty[2, 1] = torch.nan
    rollout = estimator(cell, start, dirty.requires_grad_(), num_steps)
    weight = torch.where(keep, 1.0, torch.nan if where == "cotangent" else 1.0)
    values = torch.where(
        keep.unsqueeze(1), rollout.state**2, rollout.state if where != "cotangent" else rollout.state**2
    )
    got = torch.autograd.grad((values.sum(1) * weight).sum(), [dirty, *cell.parameters()])
    assert rollout.stats.numbers()["finite"] == 0.75
    assert not got[0][2].any()
    torch.testing.assert_close(got[0][keep], expected[0][keep], rtol=1e-6, atol=1e-9)
    for mine, theirs in zip(got[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


def test_a_zero_cotangent_gives_zero_without_a_division():
    cell, state, inputs, num_steps = problem("mlp")
    for estimator in (ImplicitGradient(), ImplicitGradient(forward_rtol=0, max_gradient_error=0)):
        rollout = estimator(cell, state, inputs, num_steps)
        found = gradients(0 * weighted(rollout.state), cell, inputs)  # zeros and not None: others may wait for them
        assert not found.any() and found.isfinite().all()
