"""Intervals against the closed form of Wilson's score and against the coverage that they claim."""

import math

import numpy as np
import pytest
import torch

from loopgrad.analysis import bootstrap_interval, classify, record, verdict_shares
from loopgrad.analysis.intervals import wilson_interval
from loopgrad.gradients import Stationary


@pytest.mark.parametrize(("count", "total"), [(0, 512), (1, 10), (37, 64), (64, 64)])
def test_wilson_is_its_closed_form(count, total):
    z, p = 1.959963984540054, count / total
    middle, half = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    expected = [(middle + sign * half) / (1 + z * z / total) for sign in (-1, 1)]
    assert wilson_interval(count, total) == pytest.approx(expected, abs=1e-12)


def test_shares_are_split_by_outcome():
    gains = torch.tensor([0.5] * 6 + [1.05] * 4, dtype=torch.float64).unsqueeze(1)
    trace = record(Stationary(lambda z, x: x * z), torch.ones(10, 2, dtype=torch.float64), gains, 100, lags=16)
    verdicts = classify(trace)["state"]
    solved = np.array([True] * 5 + [False] * 5)
    rows = {(s.group, s.label): (s.count, s.total) for s in verdict_shares(verdicts, by=solved)}
    assert rows == {("True", "converged"): (5, 5), ("False", "converged"): (1, 5), ("False", "diverging"): (4, 5)}
    assert [s.text() for s in verdict_shares(verdicts)][0].startswith("6 of 10 converged [31.3-83.2 %]")
    with pytest.raises(ValueError, match="10 samples"):
        verdict_shares(verdicts, by=solved[:3])


def test_a_bootstrap_over_puzzles_is_wider_than_one_over_their_copies():
    generator = np.random.default_rng(0)
    puzzles = generator.standard_normal(40)
    values, clusters = np.repeat(puzzles, 25), np.repeat(np.arange(40), 25)
    low, high = bootstrap_interval(values, np.mean, clusters)
    naive = bootstrap_interval(values, np.mean)
    assert high - low == pytest.approx(2 * 1.96 * puzzles.std() / 40**0.5, rel=0.15)
    assert 4 < (high - low) / (naive[1] - naive[0]) < 6
    with pytest.raises(ValueError, match="one of each per sample"):
        bootstrap_interval(values, np.mean, clusters[:3])
