"""Two gradients beside BPTT's on z = tanh(W z + x), with the residual and the spectral radius where they were taken."""

import numpy as np
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
