"""Intervals against the closed form of Wilson's score, a t-test, a printed table, and the coverage that they claim."""

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from loopgrad.analysis import bootstrap_interval, classify, record, verdict_shares
from loopgrad.analysis.intervals import student_interval, wilson_interval
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


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0, 1, allow_nan=False), min_size=2, max_size=12).filter(
        lambda values: statistics.stdev(values) > 1e-6
    )
)
def test_a_mean_has_the_interval_of_a_t_test(values):
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert student_interval(values) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


def test_a_mean_has_the_interval_of_the_printed_table():
    half = 4.3027 * 0.02 / math.sqrt(3)  # t of 0.975 at 2 degrees of freedom; mean 0.12, standard deviation 0.02
    assert student_interval([0.10, 0.12, 0.14]) == pytest.approx((0.12 - half, 0.12 + half), abs=1e-6)
    half = 2.7764 * math.sqrt(2.5) / math.sqrt(5)  # of 1 to 5, at 4 degrees of freedom
    assert student_interval([1, 2, 3, 4, 5]) == pytest.approx((3 - half, 3 + half), abs=1e-4)
    assert student_interval([0.3]) == student_interval([]) == (-math.inf, math.inf)
    assert student_interval([0.25, 0.25, 0.25]) == (0.25, 0.25)


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.float32, np.float64])
def test_a_mean_of_an_array_has_the_interval_of_its_numbers(kind):
    assert student_interval(np.array([1, 2, 4], dtype=kind)) == pytest.approx(student_interval([1.0, 2.0, 4.0]))


@pytest.mark.parametrize(
    ("values", "confidence", "said"),
    [
        ([math.nan, 1, 2], 0.95, "values must be finite"),
        ([math.inf, 1, 2], 0.95, "values must be finite"),
        ([[1, 2], [3, 4]], 0.95, "in one dimension"),
        ([1, 2, 3], 95, "confidence must be above 0 and below 1"),
        ([1, 2, 3], math.nan, "confidence must be above 0 and below 1"),
        ([1, 2, 3], 1.0, "confidence must be above 0 and below 1"),
    ],
)
def test_what_has_no_interval_is_refused(values, confidence, said):
    with pytest.raises(ValueError, match=said):
        student_interval(values, confidence)
