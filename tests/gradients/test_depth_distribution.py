"""Distributions of a number of steps against probability mass functions written by hand."""

import math

import numpy as np
import pytest
import torch
from depth_chances import chance

from loopgrad.gradients.depth_distribution import DEPTH_FAMILIES, DepthDistribution

every_distribution = pytest.mark.parametrize("distribution", DEPTH_FAMILIES)


@every_distribution
@pytest.mark.parametrize("mean", [1.3, 2.5, 8.0, 32.0])
def test_survival_is_the_sum_of_the_probabilities(mean, distribution):
    depths, tail, seen = DepthDistribution(mean, distribution), 0.0, 0
    assert depths.survival(0) == 1
    for d in range(2000, 0, -1):
        tail += chance(mean, distribution, d + 1)
        if tail > 1e-12:
            seen += 1
            assert depths.survival(d) == pytest.approx(tail, rel=1e-8)
    assert seen > 4


@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.0])
def test_survival_of_other_widths(sigma):
    below = 0.0
    for d in range(1, 60):
        below += chance(8.0, "lognormal", d, sigma)
        assert DepthDistribution(8.0, "lognormal", sigma).survival(d) == pytest.approx(1 - below, rel=1e-8, abs=1e-12)


@every_distribution
@pytest.mark.parametrize("mean", [1.2, 5, 24.5])
def test_draws_have_the_mean_and_the_survival(distribution, mean):
    depths, generator, draws = DepthDistribution(mean, distribution), torch.Generator().manual_seed(3), 10_000
    found = np.array([depths.sample(generator) for _ in range(draws)])
    assert found.min() >= 1
    assert abs(found.mean() - mean) < 4 * found.std() / math.sqrt(draws)
    for d in {1, 2, int(mean), int(2 * mean)}:
        p = depths.survival(d)
        assert abs((found > d).mean() - p) < 4 * math.sqrt(p * (1 - p) / draws)


@every_distribution
def test_a_mean_of_one_is_always_one(distribution):
    depths, generator = DepthDistribution(1, distribution), torch.Generator()
    assert {depths.sample(generator) for _ in range(20)} == {1}
    assert [depths.survival(d) for d in (0, 1, 2)] == [1, 0, 0]


def test_lognormal_of_no_width_is_poisson():
    for d in (1, 5, 20):
        assert DepthDistribution(6, "lognormal", 0).survival(d) == pytest.approx(
            DepthDistribution(6, "poisson").survival(d), rel=1e-12
        )


@pytest.mark.parametrize("mean", [8, 32])
def test_geometric_has_the_largest_tail_from_2_to_20_means(mean):
    for d in range(2 * mean, 20 * mean, mean):
        geometric, poisson, lognormal = (DepthDistribution(mean, name).survival(d) for name in DEPTH_FAMILIES)
        assert geometric > lognormal > poisson


@pytest.mark.parametrize("mean", [0.99, math.nan])
def test_a_distribution_refuses_a_wrong_mean(mean):
    with pytest.raises(ValueError, match=r"DepthDistribution\(mean="):
        DepthDistribution(mean)
