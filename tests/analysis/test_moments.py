"""Moments of draws: those of all draws at once, and standard errors and chances that hold under many repeats."""

import math

import numpy as np
import pytest
import torch

from loopgrad.analysis.moments import Moments


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def near(found, expected, deviation):
    assert abs(found - expected) < 4 * deviation, (found, expected, deviation)


def summaries(draw, bias, repeats, k):
    """Whole-vector numbers of `repeats` runs of k draws each, as arrays."""
    rows = []
    for _ in range(repeats):
        moments = Moments(torch.zeros(len(bias), dtype=torch.float64), [len(bias)])
        for x in draw(k) + bias:
            moments.add(x)
        rows.append(moments.summary()[-1])
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def isotropic(k):
    return torch.randn(k, 40, dtype=torch.float64)


def one_direction(k):
    return torch.randn(k, 1, dtype=torch.float64) * torch.ones(40, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "too_large"), [(isotropic, 1.5), (one_direction, 2.5)])
def test_p_is_uniform_and_z_has_deviation_one_under_no_bias(draw, too_large):
    found = summaries(draw, torch.zeros(40, dtype=torch.float64), repeats=200, k=64)
    assert abs(found["z"].mean()) < 4 * 1.1 / math.sqrt(200)
    assert 0.75 < found["z"].std() < 1.5
    assert 0.8 < np.sqrt((found["bias_error"] ** 2).mean()) / found["bias_squared"].std() < too_large
    for level in (0.1, 0.5):
        near((found["p"] < level).mean(), level, math.sqrt(level * (1 - level) / 200))


@pytest.mark.slow
@pytest.mark.parametrize("draw", [isotropic, one_direction])
def test_the_error_of_the_bias_is_its_standard_deviation(draw):
    bias = torch.full((40,), 0.3, dtype=torch.float64)
    found = summaries(draw, bias, repeats=200, k=64)
    near(found["bias_squared"].mean(), 40 * 0.09, found["bias_squared"].std() / math.sqrt(200))
    assert np.sqrt((found["bias_error"] ** 2).mean()) == pytest.approx(found["bias_squared"].std(), rel=0.25)


def test_moments_equal_those_of_all_draws_held_at_once():
    x, target = torch.randn(9, 7, dtype=torch.float64) + 5, torch.randn(7, dtype=torch.float64)
    moments = Moments(target, [3, 4])
    for row in x:
        moments.add(row)
    for found, part in zip(moments.summary(), (slice(0, 3), slice(3, 7), slice(0, 7)), strict=True):
        off = (x - target)[:, part]
        products = (off @ off.T).numpy()
        assert found["bias_squared"] == pytest.approx(products[~np.eye(9, dtype=bool)].mean(), rel=1e-10)
        assert found["variance"] == pytest.approx(x[:, part].var(dim=0).sum().item(), rel=1e-12)
        assert found["mse"] == pytest.approx(off.square().sum(dim=1).mean().item(), rel=1e-12)
