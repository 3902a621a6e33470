"""What a residual that goes to zero validates: the implicit gradient, and not the one-step gradient.

z = tanh(W z + x) with 32 features, gradient of W beside BPTT through all updates, at four spectral radii; the table
that this repeats has .47, .85, 1.1 and 1.4, and cosines .897 and .625 of the one-step gradient at the first two.
"""

import numpy as np
import pytest
import torch

from loopgrad.analysis import StateMap, spectral_radius
from loopgrad.gradients import BPTT, ImplicitGradient, Stationary, TruncatedBPTT

SOLVED = ImplicitGradient("gmres", rtol=1e-12, max_vjps=64, on_unconverged="ignore")


def compared(gain, num_steps, seed):
    """Return spectral radius, residual, and (cosine, relative error) of the implicit and the one-step gradient."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.nn.Parameter(gain * torch.randn(32, 32, generator=generator).double() / 32**0.5)
    x, c = (torch.randn(16, 32, generator=generator).double() for _ in range(2))
    cell, start = Stationary(lambda z, x: torch.tanh(z @ w.T + x), parameters=[w]), torch.zeros_like(x)
    x = 0.5 * x

    def gradient(estimator):
        rollout = estimator(cell, start, x, num_steps)
        return torch.autograd.grad((rollout.state * c).sum(), w)[0].flatten(), rollout

    exact, rollout = gradient(BPTT())
    z = rollout.state.detach()
    f = StateMap(cell, z, x)
    residual = ((f(z) - z).norm(dim=1) / z.norm(dim=1)).median().item()
    found = []
    for estimator in (SOLVED, TruncatedBPTT(num_steps=1)):
        got = gradient(estimator)[0]
        cosine = torch.cosine_similarity(got, exact, dim=0).item()
        found.append((cosine, ((got - exact).norm() / exact.norm()).item()))
    gated = gradient(ImplicitGradient(max_vjps=64))[1].stats.numbers()["trusted"]
    return float(np.median(spectral_radius(f, z))), residual, *found, gated


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_the_states_converge_the_implicit_gradient_is_exact_and_the_one_step_gradient_is_not(seed):
    radius, residual, implicit, one_step, trusted = compared(0.5, 64, seed)
    assert 0.4 < radius < 0.55 and residual < 1e-14 and trusted == 1
    assert implicit[1] < 1e-12
    assert 0.85 < one_step[0] < 0.95 and 0.3 < one_step[1] < 0.55

    radius, residual, implicit, one_step, trusted = compared(0.8, 512, seed)
    assert 0.6 < radius < 0.9 and residual < 1e-6 and trusted == 1
    assert implicit[1] < 1e-3
    assert 0.5 < one_step[0] < 0.85 and one_step[1] > 0.5


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("gain", "least"), [(1.5, 0.9), (3.0, 1.2)])
def test_where_they_do_not_both_are_lost_and_the_gate_is_shut(seed, gain, least):
    radius, residual, implicit, one_step, trusted = compared(gain, 16, seed)
    assert radius > least and residual > 0.1 and trusted == 0
    assert implicit[0] < 0.5 and implicit[1] > 0.8
    assert one_step[0] < 0.5 and one_step[1] > 0.8


def test_a_residual_that_has_not_arrived_leaves_an_error_of_its_size():
    errors = [compared(0.5, num_steps, 0)[1:3] for num_steps in (4, 8, 16)]
    for residual, (_, error) in errors:
        assert residual < error < 30 * residual
