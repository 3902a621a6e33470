"""Spectra and exponents against closed forms, dense linear algebra and published values."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from loopgrad.analysis import StateMap, eigenvalues, lyapunov, operator_norm, spectral_radius
from loopgrad.gradients import Stationary
from loopgrad.models import TRM


def linear(matrix):
    matrix = torch.as_tensor(matrix, dtype=torch.float64)
    return lambda z, x: z @ matrix.T


def mapped(fn, start, inputs=None):
    return StateMap(Stationary(fn), start, inputs)


def rotation(angle, scale=1.0):
    return scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def starts(n, count=64, seed=0):
    return torch.randn(count, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_complex_pair_has_its_modulus_and_not_a_rayleigh_quotient():
    f = mapped(linear(rotation(1.0, 0.9)), starts(2))
    assert spectral_radius(f, f.point) == pytest.approx(np.full(64, 0.9), abs=1e-12)
    found = eigenvalues(f, f.point, k=2)
    assert np.sort(found.imag, axis=1) == pytest.approx(np.tile([-0.9 * math.sin(1), 0.9 * math.sin(1)], (64, 1)))


@pytest.mark.parametrize("n", [40, pytest.param(512, marks=pytest.mark.slow)])
def test_a_random_matrix_agrees_with_dense_algebra_and_its_norm_is_above_its_radius(n):
    matrix = np.random.default_rng(3).standard_normal((n, n)) / n**0.5 * 0.95
    f = mapped(linear(matrix), starts(n, count=1))
    dense = np.linalg.eigvals(matrix)
    dense = dense[np.argsort(-np.abs(dense))]
    assert np.abs(eigenvalues(f, f.point, k=6)[0]) == pytest.approx(np.abs(dense[:6]), rel=1e-5)
    assert spectral_radius(f, f.point)[0] == pytest.approx(abs(dense[0]), rel=1e-5)
    assert operator_norm(f, f.point)[0] == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-6)
    assert spectral_radius(f, f.point)[0] < 1.1 < 1.7 < operator_norm(f, f.point)[0]


def test_each_sample_has_its_own_spectrum():
    gains = torch.tensor([[0.3], [0.9], [1.4]], dtype=torch.float64)
    f = mapped(lambda z, x: x * torch.sin(z), torch.zeros(3, 130, dtype=torch.float64), gains)
    assert spectral_radius(f, f.point) == pytest.approx([0.3, 0.9, 1.4], rel=1e-9)
    assert operator_norm(f, f.point) == pytest.approx([0.3, 0.9, 1.4], rel=1e-9)
    small = mapped(lambda z, x: x * torch.sin(z), torch.zeros(3, 4, dtype=torch.float64), gains)
    assert spectral_radius(small, small.point) == pytest.approx([0.3, 0.9, 1.4], rel=1e-9)


@pytest.mark.parametrize("mixer", ["mlp", "attention"])
def test_products_of_a_trm_cycle_are_those_of_its_dense_jacobian(mixer):
    torch.manual_seed(0)
    model = TRM(5, 4, hidden_size=8, num_heads=2, H_cycles=1, L_cycles=2, num_layers=1, mixer=mixer)
    state, x = model.initial_state(2), torch.randn(2, 4 + model.embedding.puzzle_tokens, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    f = StateMap(model.cell, state, x)
    dense = f.jacobians(f.point)
    step = 1e-6 * starts(f.point.shape[1], count=2, seed=1)
    differences = (f(f.point + step) - f(f.point - step)) / 2
    torch.testing.assert_close((dense @ step.unsqueeze(2)).squeeze(2), differences, rtol=1e-6, atol=1e-13)
    image, (pushed,) = f.push(f.point, step)
    torch.testing.assert_close(pushed, differences, rtol=1e-6, atol=1e-13)
    torch.testing.assert_close(image, f(f.point))
    with f.linearised(f.point) as pull:
        torch.testing.assert_close(pull(step), (dense.mT @ step.unsqueeze(2)).squeeze(2), rtol=1e-9, atol=1e-15)
    expected = np.abs(np.linalg.eigvals(dense.numpy())).max(axis=1)
    assert spectral_radius(f, f.point) == pytest.approx(expected, rel=1e-6)
    assert model.training and all(p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("fn", "n", "exact"),
    [
        (linear(0.5 * np.eye(2)), 2, [math.log(0.5)] * 2),
        (linear(rotation(math.pi * (5**0.5 - 1))), 2, [0.0, 0.0]),
        (linear(rotation(1.0, 0.9)), 2, [math.log(0.9)] * 2),
        (linear(np.diag([1.2, 0.7, 0.1])), 3, [math.log(1.2), math.log(0.7), math.log(0.1)]),
    ],
)
def test_exponents_of_linear_maps_are_logarithms_of_moduli(fn, n, exact):
    f = mapped(fn, starts(n))
    found = lyapunov(f, f.point, 60, k=n, transient=60)
    assert found.mean == pytest.approx(np.tile(exact, (64, 1)), abs=1e-9)


def logistic(r):
    return lambda z, x: r * z * (1 - z)


LONGER_CYCLES = [(3.2, math.log(0.16) / 2, 1e-6), (3.5, -0.872507, 1e-5)]


@pytest.mark.parametrize(
    ("r", "exact", "tolerance"),
    [(2.8, math.log(0.8), 1e-9), *(pytest.param(*it, marks=pytest.mark.slow) for it in LONGER_CYCLES)],
)
def test_exponents_of_settled_logistic_maps(r, exact, tolerance):
    f = mapped(logistic(r), torch.linspace(0.1, 0.8, 64, dtype=torch.float64).unsqueeze(1))
    found = lyapunov(f, f.point, 400, transient=1200)
    assert found.mean[:, 0] == pytest.approx(np.full(64, exact), abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(("r", "exact", "tolerance"), [(3.9, 0.4961, 0.01), (4.0, math.log(2), 5e-3)])
def test_chaotic_logistic_maps_and_their_standard_errors(r, exact, tolerance):
    f = mapped(logistic(r), torch.linspace(0.1, 0.79, 64, dtype=torch.float64).unsqueeze(1))
    found = lyapunov(f, f.point, 3000, transient=50)
    assert found.mean.mean() == pytest.approx(exact, abs=tolerance)
    # the error of one orbit is what the orbits differ by; at r = 4 rates are those of a conjugate map and add up better
    assert 0.4 * found.mean.std() < np.median(found.error) < (2.5 if r < 4 else 5) * found.mean.std()


@pytest.mark.slow
def test_exponents_of_the_henon_map_add_up_to_its_contraction():
    def henon(z, x):
        return torch.stack([1 - 1.4 * z[:, 0] ** 2 + z[:, 1], 0.3 * z[:, 0]], dim=1)

    f = mapped(henon, 0.1 * starts(2, count=16))
    found = lyapunov(f, f.point, 3000, k=2, transient=100)
    assert found.mean.sum(axis=1) == pytest.approx(np.full(16, math.log(0.3)), abs=1e-9)
    assert found.mean.mean(axis=0) == pytest.approx([0.4192, -1.6232], abs=3e-3)


def test_exponents_of_a_random_network_have_the_published_sign():
    """Sompolinsky, Crisanti and Sommers (1988): tanh networks are chaotic from a gain of one on."""
    weights = np.random.default_rng(0).standard_normal((100, 100)) / 10
    signs = []
    for gain in (0.6, 1.8):
        f = mapped(lambda z, x, g=gain: torch.tanh(z @ torch.as_tensor(g * weights).T), starts(100, count=2))
        signs.append(lyapunov(f, f.point, 200, transient=100).mean.mean())
    assert signs[0] < -0.1 and signs[1] > 0.05


def test_wrong_numbers_are_refused():
    f = mapped(linear(np.eye(2)), starts(2))
    with pytest.raises(ValueError, match="between 1 and"):
        eigenvalues(f, f.point, k=3)
    with pytest.raises(ValueError, match="blocks"):
        lyapunov(f, f.point, 5, blocks=10)


def test_batch_statistics_and_dropout_are_switched_off_and_put_back():
    cell = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
    wrapped = Stationary(lambda z, x: cell(z), parameters=cell)
    cell.double()
    f = StateMap(wrapped, starts(4, count=8), None)
    assert torch.equal(f(f.point), f(f.point)) and cell.training
    assert cell[0].num_batches_tracked == 0
