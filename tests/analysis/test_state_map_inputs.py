"""Above 96 features a spectrum is taken sample by sample, whatever dimension of the inputs is the batch."""

import numpy as np
import pytest
import torch
from torch import nn

from loopgrad.analysis import StateMap, eigenvalues, operator_norm, spectral_radius

N, B = 104, 3


class Cell(nn.Module):
    """A map of the state and of what `read` takes from inputs."""

    def __init__(self, read, period=1, gated=False):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.read, self.period, self.gated = nn.Linear(N, N, bias=False), read, period, gated

    def forward(self, state, inputs, step):
        x = self.read(inputs, step)
        return torch.tanh(self.linear(state) * x if self.gated else self.linear(state) + x)


CASES = {
    "time first": (lambda x, step: x[step], (5, B, N)),
    "time first, as many updates as samples": (lambda x, step: x[step], (B, B, N)),
    "batch last": (lambda x, step: x[step % 2].T, (2, N, B)),
    "a table of as many rows as samples": (lambda x, step: x[step], (B, N)),
    "one table for all": (lambda x, step: x.mean(0, keepdim=True), (B, N)),
    "batch first": (lambda x, step: x[:, step], (B, 5, N)),
    "none": (lambda x, step: 0.5, None),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "gated", [True, pytest.param(False, marks=pytest.mark.slow)]
)  # from a state of zeros a gate is not seen in the image
@pytest.mark.parametrize("period", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("case", CASES)
def test_the_spectrum_of_each_sample_is_that_of_its_block_of_the_whole_jacobian(case, period, gated):
    read, shape = CASES[case]
    cell = Cell(read, period, gated)
    inputs = None if shape is None else torch.randn(shape)
    f = StateMap(cell, torch.zeros(B, N), inputs)
    blocks = f.jacobians(f.point)
    radii = torch.linalg.eigvals(blocks).abs().amax(1).numpy()
    np.testing.assert_allclose(spectral_radius(f, f.point), radii, rtol=1e-6)
    np.testing.assert_allclose(np.abs(eigenvalues(f, f.point, k=1)[:, 0]), radii, rtol=1e-6)
    norms = torch.linalg.matrix_norm(blocks, 2).numpy()
    np.testing.assert_allclose(operator_norm(f, f.point), norms, rtol=1e-6)


def test_a_sample_runs_alone_where_its_rows_say_all():
    seen = []

    def read(x, step):
        seen.append(len(x))
        return x

    f = StateMap(Cell(read), torch.zeros(B, N), torch.randn(B, N))
    one = f.sample(1)
    seen.clear()
    assert torch.allclose(one(one.point)[0], f(f.point)[1]) and seen == [1, B]
