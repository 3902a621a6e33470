"""Verdicts on claims: paired intervals beside scipy and a printed table, rules by hand, curves that are known."""

import statistics

import numpy as np
import pytest
from claim_records import compared, record, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t, ttest_1samp

from loopgrad.analysis import student_interval
from loopgrad.experiments.records import ClaimRecord
from loopgrad.experiments.records.schema import check
from loopgrad.experiments.reports.claims.growth import steps_to
from loopgrad.experiments.reports.claims.verdicts import (
    FAILS,
    FEW,
    FLAT,
    FULL,
    HOLDS,
    MOST_SEEDS,
    OPEN,
    SPREAD,
    at_step,
    findings,
    reading,
    seeds_needed,
    verdict,
)

SHARES = st.floats(0, 1, allow_nan=False)


def test_pairs_take_out_what_a_seed_gives_to_both():
    deep, shallow = [0.30, 0.50, 0.70], [0.20, 0.41, 0.59]
    (found,) = findings(compared(deep, shallow))
    expected = ttest_1samp(np.subtract(deep, shallow), 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.verdict == HOLDS
    apart = student_interval(deep), student_interval(shallow)
    assert apart[0][0] < apart[1][1]  # unpaired they would not be told apart
    assert found.differences == pytest.approx([0.10, 0.09, 0.11])


@pytest.mark.parametrize("values", [[0.1, 0.2, 0.0], [0.1, 0.12, 0.3], [0.0, 0.9, -0.8], [0.011, -0.01, 0.003, 0.0]])
@pytest.mark.parametrize("by", [0.0, 0.05, -0.02])
def test_the_number_of_seeds_is_the_first_that_decides(values, by):
    away, spread = abs(statistics.fmean(values) - by), statistics.stdev(values)
    counts = np.arange(len(values) + 1, MOST_SEEDS + 1)
    decides = t.ppf(0.975, counts - 1) * spread / np.sqrt(counts) < away
    expected = int(counts[decides.argmax()]) if decides.any() else None
    assert seeds_needed(values, by) == expected
    (found,) = findings(compared([0.5 + it for it in values], [0.5] * len(values), by=by))
    assert found.seeds == (None if found.verdict != OPEN else pytest.approx(expected, abs=1))


def test_no_number_of_seeds_decides_where_the_mean_is_what_matters():
    assert seeds_needed([0.25, 0.5, 0.75], 0.5) is None


@pytest.mark.parametrize(
    ("deep", "shallow", "contrast", "expected", "reason"),
    [
        ([0.5, 0.6, 0.7], [0.3, 0.4, 0.5], {}, HOLDS, ""),
        ([0.5, 0.6, 0.7], [0.3, 0.4, 0.5], {"by": 0.1}, HOLDS, ""),
        ([0.5, 0.6, 0.7], [0.3, 0.4, 0.5], {"by": 0.2 + 1e-9}, FAILS, ""),
        ([0.3, 0.4, 0.5], [0.5, 0.6, 0.7], {}, FAILS, ""),
        ([0.3, 0.4, 0.5], [0.31, 0.41, 0.51], {"by": -0.02}, HOLDS, ""),
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], {}, FAILS, ""),  # none of the interval is above nothing
        ([0.2, 0.9, 0.3], [0.3, 0.4, 0.5], {}, OPEN, SPREAD),
        ([0.0, 0.02, 0.01], [0.0, 0.0, 0.0], {"by": -0.02}, OPEN, FLAT),
        ([0.021, 0.02, 0.01], [0.0, 0.0, 0.0], {"by": -0.02}, HOLDS, ""),
        ([0.98, 1.0, 1.0], [1.0, 0.98, 0.99], {"by": -0.02}, OPEN, FULL),
        ([0.98, 1.0, 1.0], [0.97, 0.98, 0.99], {"by": -0.02}, HOLDS, ""),
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], {"share": 0.875}, HOLDS, ""),  # a share of all can be exceeded
        ([0.5, 0.6], [0.1, 0.1], {}, OPEN, FEW),
        ([0.5, 0.6, None], [0.1, None, 0.1], {"at": "segments@4"}, OPEN, FEW),
        ([0.5, 0.6, None, 0.7], [0.1, 0.1, 0.1, 0.1], {"at": "segments@4"}, HOLDS, ""),
        ([None] * 3, [0.1] * 3, {"at": "halted"}, OPEN, FEW),
        ([0.6, 0.7, 0.65], [0.5, 0.6, 0.55], {"share": 2.0}, FAILS, ""),
        ([8.0, 8.0, 8.0], [3.0, 3.5, 3.2], {"at": "halted segments", "share": 2.0}, HOLDS, ""),
        ([0.01, 0.01, 0.01], [0.0, 0.0, 0.0], {"at": "halted segments"}, HOLDS, ""),  # no share of samples
        ([0.9, 0.8, 0.7], [0.9, 0.9, 0.9], {"less": None, "by": 0.5}, HOLDS, ""),
        ([0.3, 0.2, 0.25], [0.9, 0.9, 0.9], {"less": None, "by": 0.5}, FAILS, ""),
        ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], {"less": None, "by": 0.5}, HOLDS, ""),
        ([0.0, 0.01, 0.0], [0.9, 0.9, 0.9], {"less": None, "by": 0.5}, OPEN, FLAT),
        ([0.5] * 3, [0.5] * 3, {"more": "nobody"}, OPEN, FEW),
    ],
)
def test_a_difference_is_judged_by_the_whole_of_its_interval(deep, shallow, contrast, expected, reason):
    made = compared(deep, shallow, **contrast)
    check(made, ClaimRecord)
    (found,) = findings(made)
    assert (found.verdict, found.reason) == (expected, reason)
    assert (found.seeds is None) or expected == OPEN


def test_an_end_that_is_what_matters_is_not_above_it():
    (found,) = findings(compared([0.5] * 3, [0.25] * 3, by=0.25))
    assert found.low == found.high == found.by and found.verdict == FAILS


def test_a_condition_is_compared_with_itself_at_another_reading():
    trainings = [trained("deep", seed, segments__1=0.4, segments__16=0.5 + 0.01 * seed) for seed in range(3)]
    says = {"says": "it keeps seven eighths", "more": "deep", "at": "segments@1", "less_at": "segments@16"}
    contrast = {**says, "less": "deep", "share": 0.875}
    (found,) = findings(record(trainings, {"keeps": contrast}))
    assert found.differences == pytest.approx([0.4 - 0.875 * (0.5 + 0.01 * seed) for seed in range(3)])
    assert found.verdict == FAILS


def test_a_claim_holds_where_all_differences_do_and_does_not_where_one_does_not():
    def of(*kinds):
        values = {HOLDS: ([0.5, 0.6, 0.7], [0.1] * 3), FAILS: ([0.1] * 3, [0.5, 0.6, 0.7]), OPEN: ([0.5], [0.1])}
        trainings, contrasts = [], {}
        for i, kind in enumerate(kinds):
            for condition, shares in zip((f"more{i}", f"less{i}"), values[kind], strict=True):
                trainings += [trained(condition, seed, exact=share) for seed, share in enumerate(shares)]
            contrasts[str(i)] = {"says": "x", "more": f"more{i}", "less": f"less{i}"}
        return verdict(findings(record(trainings, contrasts)))

    assert of(HOLDS) == of(HOLDS, HOLDS) == "holds"
    assert of(FAILS) == of(HOLDS, FAILS) == of(OPEN, FAILS, HOLDS) == "does not hold"
    assert of(OPEN) == of(HOLDS, OPEN) == "undecided at this size"


def test_accuracy_at_equal_flops_is_that_of_the_line_between_evaluations():
    dear = trained("deep", 0, steps=100, flops=4e9, curve={20: 0.2, 40: 0.6, 100: 0.9})
    cheap = trained("shallow", 0, steps=100, flops=1e9, curve={50: 0.3, 100: 0.5})
    # the cheap one spends 1e11 in all: 25 steps of the other, a quarter of the way from 0.2 to 0.6
    assert reading(dear, "flops", cheap) == pytest.approx(0.3)
    assert reading(cheap, "flops", dear) == pytest.approx(0.5)
    early = trained("deep", 0, steps=100, flops=40e9, curve={20: 0.2, 100: 0.9})
    assert reading(early, "flops", cheap) == pytest.approx(0.2 * 2.5 / 20)  # from nothing at the first step
    assert reading(dear, "flops", dear) == reading(dear, "flops") == pytest.approx(0.9)
    assert reading({**dear, "flops": None}, "flops", cheap) is reading(cheap, "flops", {**dear, "flops": 0}) is None


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(1, 1000), SHARES, min_size=1, max_size=8), st.floats(0, 1200))
def test_the_line_between_evaluations_is_that_of_numpy(curve, step):
    curve = dict(sorted(curve.items()))
    expected = np.interp(step, [0, *curve], [0, *curve.values()])
    assert at_step(trained("deep", 0, curve=curve), step) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("slope", "half"), [(1.0, 400.0), (2.5, 150.0), (0.7, 80_000.0)])
@pytest.mark.parametrize("wanted", [0.5, 0.9])
def test_steps_are_those_of_the_logistic_curve_that_made_the_shares(slope, half, wanted):
    def share(step):
        return 1 / (1 + (half / step) ** slope)

    steps = [10, 20, 40, 80, 160, 300]
    expected = half * (wanted / (1 - wanted)) ** (1 / slope)
    assert share(expected) == pytest.approx(wanted)
    assert steps_to(steps, [share(it) for it in steps], wanted) == pytest.approx(expected, rel=1e-6)


def test_steps_follow_the_later_half_of_what_was_evaluated():
    steps = [10 * 2**i for i in range(8)]
    early, late = [0.3, 0.2, 0.3, 0.2], [1 / (1 + (1000 / it) ** 2) for it in steps[4:]]
    assert steps_to(steps, early + late) == pytest.approx(1000, rel=1e-6)


@pytest.mark.parametrize(
    "shares",
    [[0.0] * 6, [0.1, 0.2], [0.0, 0.0, 0.0, 0.0, 0.01, 0.02], [1.0] * 6, [0.5, 0.4, 0.3], [0.3, 0.3, 0.3]],
)
def test_no_steps_are_told_where_nothing_grows(shares):
    assert steps_to(range(100, 100 + 10 * len(shares), 10), shares) is None


def test_steps_beyond_all_training_are_not_told():
    assert steps_to([100, 200, 400], [0.0100, 0.0101, 0.0102]) is None
