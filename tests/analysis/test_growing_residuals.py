"""A residual that grows: runs that leave where they were, and bounded ones that only turn faster, in closed form."""

import math

import pytest
import torch

from loopgrad.analysis import classify, record
from loopgrad.gradients import Stationary


class Turning(torch.nn.Module):
    """z_t - c turns by an angle that grows by `faster` per update, and shrinks or grows by `scale`."""

    def __init__(self, angle, faster, scale, centre=0.0, noise=0.0):
        super().__init__()
        self.angle, self.faster, self.scale, self.centre, self.noise = angle, faster, scale, centre, noise
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, state, inputs, step):
        angle = self.angle * self.faster**step
        turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]).to(state)
        new = self.centre + self.scale * (state - self.centre) @ turn
        return new + self.noise * torch.randn(new.shape, generator=self.generator, dtype=torch.float64).to(new)


def labels(cell, start, num_steps):
    return classify(record(cell, start, None, num_steps, lags=16))["state"].counts()


def around(centre, count=32, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return (centre + torch.randn(count, 2, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("num_steps", [24, 48, 96, 192])
@pytest.mark.parametrize("scale", [0.995, 0.9995])
def test_a_shrinking_run_that_turns_faster_is_bounded(num_steps, scale):
    assert "diverging" not in labels(Turning(0.02, 1.012, scale), around(0.0), num_steps)


@pytest.mark.parametrize("centre", [1.0, 5.0, -40.0])
@pytest.mark.parametrize("angle", [0.1, 0.3])
def test_so_is_one_of_constant_radius_about_a_point_far_away(angle, centre):
    cell = Turning(angle, 1.01, 1.0, torch.tensor([centre, 0.0], dtype=torch.float64))
    assert "diverging" not in labels(cell, around(cell.centre), 120)


def test_so_is_one_in_a_narrow_dtype_or_with_noise():
    assert "diverging" not in labels(Turning(0.1, 1.01, 1.0), around(0.0, dtype=torch.bfloat16), 96)
    assert "diverging" not in labels(Turning(0.1, 1.01, 1.0, noise=1e-3), around(0.0), 96)


def test_so_is_a_normalised_state_whose_turns_accelerate_in_many_dimensions():
    skew = torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    skew = 0.02 * (skew - skew.T)

    class Faster(torch.nn.Module):
        def forward(self, state, inputs, step):
            new = state @ torch.linalg.matrix_exp(1.006**step * skew)
            return new / new.norm(dim=1, keepdim=True)

    start = torch.randn(32, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert "diverging" not in labels(Faster(), start, 120)


def test_a_run_that_falls_faster_and_faster_towards_zero_goes_on_and_does_not_diverge():
    # |z| - 0.05 / |z|: straight, shrinking, with steps that grow
    def update(z, x):
        size = z.norm(dim=1, keepdim=True)
        return z * (1 - 0.05 / size**2)

    start = 5 * torch.nn.functional.normalize(around(0.0))
    assert labels(Stationary(update), start, 200) == {"drift": 32}


@pytest.mark.parametrize("num_steps", [120, pytest.param(240, marks=pytest.mark.slow)])
@pytest.mark.parametrize("centre", [0.0, 3.0, 30.0])
@pytest.mark.parametrize("angle", [0.0, 0.02, 0.3, 1.0, 2.5, math.pi])
def test_spirals_and_saddles_of_radius_above_one_diverge_wherever_their_centre_lies(angle, centre, num_steps):
    start = around(centre, 16)
    start = start.where(start > centre, 2 * centre - start)  # outwards, seen from zero
    assert labels(Turning(angle, 1.0, 1.02, centre), start, num_steps) == {"diverging": 16}


def test_a_linear_map_with_one_unstable_direction_diverges():
    generator = torch.Generator().manual_seed(2)
    basis = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0]
    values = torch.cat([torch.tensor([1.03]), torch.linspace(-0.9, 0.9, 11)]).double()
    matrix = basis @ torch.diag(values) @ basis.T
    start = torch.randn(32, 12, generator=generator, dtype=torch.float64)
    assert labels(Stationary(lambda z, x: z @ matrix), start, 160) == {"diverging": 32}


def test_a_random_linear_map_of_radius_above_one_diverges_through_its_oscillations():
    generator = torch.Generator().manual_seed(4)
    matrix = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    matrix = 1.03 * matrix / torch.linalg.eigvals(matrix).abs().max()
    start = torch.randn(32, 24, generator=generator, dtype=torch.float64)
    found = labels(Stationary(lambda z, x: z @ matrix), start, 300)
    assert found == {"diverging": 32}
