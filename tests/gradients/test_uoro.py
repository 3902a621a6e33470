"""UORO (Tallec and Ollivier 2017, arXiv 1702.05043), written out as a witness beside `ForwardGradient`.

UORO carries, per sample, a state s and a gradient theta: |z| + P numbers where perturb="state" carries |z|. What it
gets for the P is the size of each update's gradient, by which it scales the noise. K E|estimate - g|^2 / |g|^2, with
standard errors, one tangent, on the standard cell (16 features, P = 192, so 208 numbers against 16):

    updates       UORO         state, window=0
    8         25.7 +- 0.2      22.0 +- 0.3      the last adjoint is known, which UORO does not use
    32        30.8 +- 0.3      42.4 +- 0.9      adjoints have shrunk to a fifth, and noise has one size
"""

import math

import pytest
import torch
from forward_cases import flat, standard
from torch.func import functional_call, jacrev, vmap

from loopgrad.gradients import BPTT, ForwardGradient

pytestmark = pytest.mark.slow


def jacobians(problem, num_steps):
    """Return of each update d z' / d z (batch, n, n) and d z' / d weights (batch, n, P)."""
    cell, z, inputs, _ = problem
    weights = {name: p.detach() for name, p in cell.named_parameters()}
    of_one = vmap(jacrev(lambda z, w, x: functional_call(cell, w, (z, x, 0)), argnums=(0, 1)), in_dims=(0, None, 0))
    found = []
    for step in range(num_steps):
        of_z, of_weights = of_one(z, weights, inputs)
        found.append((of_z, torch.cat([j.flatten(2) for j in of_weights.values()], 2)))
        z = cell(z, inputs, step).detach()
    return found


def uoro(problem, num_steps, draws, seed):
    """Return independent estimates of the gradient, (draws, P): noise, s and theta of each sample its own."""
    g, generator = problem[3], torch.Generator().manual_seed(seed)
    s = g.new_zeros(draws, *g.shape)
    theta = g.new_zeros(draws, len(g), sum(p.numel() for p in problem[0].parameters()))

    def root(a, b):
        """Return sqrt(|a| / |b|), and 1 before there is anything to scale."""
        ratio = a.norm(dim=-1, keepdim=True) / b.norm(dim=-1, keepdim=True)
        return torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0).sqrt()

    for of_z, of_weights in jacobians(problem, num_steps):
        nu = torch.empty_like(s).bernoulli_(0.5, generator=generator) * 2 - 1
        pushed = torch.einsum("bij,nbj->nbi", of_z, s)
        fresh = torch.einsum("nbi,bip->nbp", nu, of_weights)
        rho0, rho1 = root(theta, pushed), root(fresh, nu)
        s, theta = rho0 * pushed + rho1 * nu, theta / rho0 + fresh / rho1
    return torch.einsum("nbi,bi,nbp->np", s, g, theta)


def constant(found, exact, tangents=1):
    """Return K times the mean square of the relative error, and its standard error."""
    errors = tangents * (found - exact).square().sum(1) / exact.square().sum()
    return float(errors.mean()), float(errors.std() / math.sqrt(len(errors)))


@pytest.mark.parametrize("num_steps", [1, 8])
def test_uoro_is_unbiased(num_steps):
    problem, draws = standard(batch=4, size=5), 4000
    exact = flat(BPTT(), *problem, num_steps=num_steps)
    found = uoro(problem, num_steps, draws, seed=1)
    bound = 3 * math.sqrt(constant(found, exact)[0] / draws) * exact.norm()
    assert (found.mean(0) - exact).norm() < bound < 0.4 * exact.norm()


def both(num_steps, draws):
    """Return the constants of UORO and of the state estimator, and the standard error of their difference."""
    problem, tangents = standard(), 8
    exact = flat(BPTT(), *problem, num_steps=num_steps)
    theirs, error = constant(uoro(problem, num_steps, 8 * draws, seed=2), exact)
    ours = ForwardGradient(tangents, window=0, seed=3)  # K times the error is the same at any K, and K = 8 is cheaper
    mine, own_error = constant(
        torch.stack([flat(ours, *problem, num_steps=num_steps) for _ in range(draws)]), exact, tangents
    )
    return theirs, mine, math.hypot(error, own_error)


def test_over_few_updates_the_state_estimator_has_less_noise_than_uoro():
    theirs, mine, error = both(8, draws=160)
    assert mine < theirs - 2 * error


def test_over_many_updates_uoro_has_less_noise():
    theirs, mine, error = both(32, draws=60)
    assert theirs < mine - 2 * error
    assert mine < 2 * theirs
