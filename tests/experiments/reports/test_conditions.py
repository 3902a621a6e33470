"""Pooling of verdicts over seeds, on records made by hand."""

import pytest
from scipy.stats import binomtest

from loopgrad.analysis.verdicts import LABELS
from loopgrad.experiments.reports.conditions import conditions, outcomes, settled
from loopgrad.experiments.reports.words import headline, sentence

CONVERGED, ORBIT = LABELS.index("converged"), LABELS.index("orbit")


def record(seed, labels, solved, step=10, estimator="bptt"):
    stream = {"labels": labels, "residual": {"all": [0.1, 0.2, 0.3]}, "reevaluated": {"all": [0.1, 0.25, None]}}
    depth = {"cycles": 16, "solved": solved, "streams": {"z": stream, "joint": stream}}
    shared = {"group": "maze", "estimator": estimator, "seed": seed, "step": step, "samples": len(labels)}
    return {**shared, "name": f"maze/{seed}", "dtype": {"z": "bfloat16"}, "depths": [depth, {**depth, "cycles": 64}]}


TWO = [
    record(0, [CONVERGED, ORBIT, ORBIT, CONVERGED], [1, 1, 0, 0]),
    record(1, [CONVERGED, CONVERGED, ORBIT, ORBIT], [1, 1, 0, 1]),
]


def test_seeds_are_pooled_and_outcomes_kept_apart():
    (condition,) = conditions(TWO)
    assert condition.name == "maze/bptt@10"
    assert outcomes(condition, 0) == {"solved": {"converged": 3, "orbit": 2}, "unsolved": {"converged": 1, "orbit": 2}}
    found = settled(condition, 0, outcome="solved")
    interval = binomtest(3, 5).proportion_ci(method="wilson")
    assert (found.count, found.total, found.seeds) == (3, 5, (0.5, 2 / 3))
    assert found.wilson == pytest.approx((interval.low, interval.high))


def test_the_bootstrap_draws_puzzles_and_not_samples():
    same = [record(seed, [CONVERGED] * 8 + [ORBIT] * 8, [1] * 16) for seed in range(20)]
    found = settled(conditions(same)[0], 0, by_puzzle=True)
    # 320 samples of 16 puzzles: the interval is that of 16
    assert found.clustered[1] - found.clustered[0] > 0.4 > 0.2 > found.wilson[1] - found.wilson[0]


def test_an_empty_outcome_has_no_interval_and_steps_are_in_order():
    found = conditions([record(0, [ORBIT], [1], step=20), record(0, [ORBIT], [1], step=5)])
    assert [condition.step for condition in found] == [5, 20]
    assert settled(found[0], 0, outcome="unsolved").text() == "-"


def test_the_sentence_says_count_interval_dtype_and_both_residuals():
    said = sentence(conditions(TWO)[0], "z")
    assert said.startswith("z: 4 of 8 samples converged [21.5-78.5 %] after 16 cycles, the depth of training")
    assert "(3 of 5 solved, 1 of 3 unsolved)" in said and "4 orbit" in said and "50.0 to 50.0 % by seed" in said
    assert "relative residual 0.2 (0.1-0.3) in bfloat16, 0.25 (0.1-inf) re-evaluated in float64" in said
    assert "after 64 cycles, extrapolated" in said


def test_the_headline_counts_the_last_step_alone():
    said = headline(
        conditions([*TWO, record(0, [CONVERGED] * 4, [1] * 4, step=20), record(1, [ORBIT] * 4, [1] * 4, step=20)])
    )
    assert said.startswith("At the last step of 2 sets of weights: within the depth of training, 50.0 % of 8 solved")
