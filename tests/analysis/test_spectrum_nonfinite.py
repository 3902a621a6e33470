"""A sample whose map is lost is nan in its spectra, and the other samples are what they are without it."""

import numpy as np
import pytest
import torch

from loopgrad.analysis import (
    StateMap,
    eigenvalues,
    find_fixed_points,
    lyapunov,
    multistart,
    operator_norm,
    spectral_radius,
)
from loopgrad.gradients import Stationary
from loopgrad.gradients.solvers import gmres

WIDTHS = [8, 130]  # whole Jacobians, and products alone
LOST = 1


def exponents(f, z):
    return lyapunov(f, z, 12, k=2).mean


def found(f, z):
    points = find_fixed_points(f, z)
    return np.stack([points.residual, points.radius], axis=1)


MEASURES = [eigenvalues, spectral_radius, operator_norm, exponents, found]
each = pytest.mark.parametrize("measure", MEASURES, ids=lambda it: it.__name__)
both = pytest.mark.parametrize("n", WIDTHS)
wide_slow = pytest.mark.parametrize("n", [WIDTHS[0], pytest.param(WIDTHS[1], marks=pytest.mark.slow)])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def recurrent(n, activation=torch.tanh):
    linear = torch.nn.Linear(n, n).double()
    with torch.no_grad():
        linear.weight.copy_(0.8 * normal(n, n, seed=1) / n**0.5)
        linear.bias.zero_()
    return linear, Stationary(lambda z, x: activation(linear(z) + x), parameters=linear)


def others(values):
    return np.delete(values, LOST, axis=0)


@each
@wide_slow
@pytest.mark.parametrize("activation", [torch.tanh, torch.nn.functional.leaky_relu])
def test_a_sample_with_nan_in_its_input_is_nan_and_alone(measure, n, activation):
    _, cell = recurrent(n, activation)
    z, x = torch.zeros(3, n), normal(3, n)
    sound = measure(StateMap(cell, z, x), z.double())
    assert np.isfinite(sound).all()
    x[LOST] = torch.nan
    spoilt = measure(StateMap(cell, z, x), z.double())
    assert np.isnan(spoilt[LOST]).all()
    np.testing.assert_array_equal(others(spoilt), others(sound))


@pytest.mark.one_in(3)
@each
@both
@pytest.mark.parametrize(
    "value", [torch.nan, *(pytest.param(it, marks=pytest.mark.slow) for it in (torch.inf, -torch.inf))]
)
def test_a_state_with_one_number_that_is_not_finite_is_nan_and_alone(measure, n, value):
    _, cell = recurrent(n)
    z, x = normal(3, n, seed=2), normal(3, n)
    sound = measure(StateMap(cell, z, x), z)
    z = z.clone()
    z[LOST, 3] = value
    spoilt = measure(StateMap(cell, z, x), z)
    assert np.isnan(spoilt[LOST]).all()
    np.testing.assert_array_equal(others(spoilt), others(sound))


@pytest.mark.one_in(3)
@each
@both
def test_an_infinite_input_is_nan_where_the_map_passes_it_on(measure, n):
    _, cell = recurrent(n, torch.nn.functional.softplus)
    z, x = torch.zeros(3, n), normal(3, n)
    sound = measure(StateMap(cell, z, x), z.double())
    x[LOST, 0] = torch.inf
    spoilt = measure(StateMap(cell, z, x), z.double())
    assert np.isnan(spoilt[LOST]).all()
    np.testing.assert_array_equal(others(spoilt), others(sound))


@both
@pytest.mark.parametrize("measure", [spectral_radius, operator_norm])
def test_an_infinite_input_that_saturates_the_map_is_no_loss(measure, n):
    _, cell = recurrent(n)
    x = normal(3, n)
    x[LOST] = torch.inf
    f = StateMap(cell, torch.zeros(3, n), x)
    assert measure(f, f.point)[LOST] == 0


@each
@both
def test_a_weight_that_is_nan_loses_every_sample(measure, n):
    linear, cell = recurrent(n)
    with torch.no_grad():
        linear.weight[2] = torch.nan
    f = StateMap(cell, normal(3, n), normal(3, n))
    assert np.isnan(measure(f, f.point)).all()


@each
@both
def test_a_slope_that_is_infinite_at_a_finite_point_is_nan(measure, n):
    root = Stationary(lambda z, x: torch.sign(z) * z.abs().sqrt() * x)  # zero at zero, with slope inf or nan there
    z = 1 + normal(3, n).abs()
    x = torch.linspace(0.5, 1.5, n, dtype=torch.float64).expand(3, n)
    sound = measure(StateMap(root, z, x), z)
    z = z.clone()
    z[LOST] = 0.0
    spoilt = measure(StateMap(root, z, x), z)
    assert np.isnan(spoilt[LOST, 1] if measure is found else spoilt[LOST]).all()
    np.testing.assert_allclose(others(spoilt), others(sound), rtol=1e-9, atol=1e-9)


@each
@both
def test_a_map_that_overflows_in_float32_is_nan_and_alone(measure, n):
    gains = torch.tensor([[0.5], [1e38], [0.7]])
    f = StateMap(Stationary(lambda z, x: x * x * z), torch.ones(3, n), gains, dtype=None)
    spoilt = measure(f, f.point).reshape(3, -1)
    assert np.isnan(spoilt[LOST]).all()
    assert np.isfinite(others(spoilt)[:, 0]).all()


@both
@pytest.mark.parametrize(("size", "dtype"), [(1e37, torch.float32), (1e200, torch.float64), (1e-200, torch.float64)])
def test_a_jacobian_whose_square_leaves_the_range_is_measured(n, size, dtype):
    matrix = normal(n, n, seed=4) / n**0.5
    f = StateMap(Stationary(lambda z, x: z @ x), torch.zeros(1, n, dtype=dtype), (size * matrix).to(dtype), dtype=None)
    radius = np.abs(np.linalg.eigvals(matrix.numpy())).max() * size
    assert spectral_radius(f, f.point)[0] == pytest.approx(radius, rel=1e-4)
    assert operator_norm(f, f.point)[0] == pytest.approx(np.linalg.norm(matrix.numpy(), 2) * size, rel=1e-4)


def test_exponents_are_nan_from_an_orbit_that_leaves_the_range_alone():
    gains = torch.tensor([[0.5], [1e30], [2.0]])
    f = StateMap(Stationary(lambda z, x: x * z), torch.ones(3, 4), gains, dtype=None)
    mean, error, _ = lyapunov(f, f.point, 20)
    assert mean[:, 0] == pytest.approx([np.log(0.5), np.nan, np.log(2.0)], nan_ok=True, abs=1e-6)
    assert np.isnan(error[:, 0]).tolist() == [False, True, False]


def test_the_exponent_of_a_constant_is_minus_infinity_without_a_warning():
    f = StateMap(Stationary(lambda z, x: 0.0 * z), torch.ones(1, 4), None)
    assert lyapunov(f, f.point, 12).mean == -np.inf


@pytest.mark.parametrize("lost", [torch.nan, torch.inf])
def test_a_start_that_is_lost_is_an_end_of_its_own(lost):
    f = StateMap(Stationary(lambda z, x: z), torch.ones(2, 3), None)
    starts = torch.ones(4, 2, 3)
    starts[2:, LOST, 0] = lost
    found = multistart(f, starts, num_steps=3)
    assert found.clusters.tolist() == [1, 3]
    assert found.spread == pytest.approx([0, np.nan], nan_ok=True)
    assert found.alignment == pytest.approx([1, np.nan], nan_ok=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e200])
def test_a_row_that_is_not_finite_leaves_the_other_rows_of_gmres_alone(value):
    matrix, b = 0.5 * normal(3, 6, 6) / 6**0.5, normal(3, 6)
    alone = gmres(lambda v: (matrix @ v.unsqueeze(2)).squeeze(2), b, torch.zeros(3), 6, None).solution
    matrix = matrix.clone()
    matrix[LOST, 2] = value
    found = gmres(lambda v: (matrix @ v.unsqueeze(2)).squeeze(2), b, torch.zeros(3), 6, None).solution
    np.testing.assert_array_equal(others(found.numpy()), others(alone.numpy()))
