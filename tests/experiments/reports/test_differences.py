"""Differences paired by seed: beside scipy's paired t-test, from the first row of the same task, none from one seed."""

import pytest
from scipy.stats import ttest_rel

from loopgrad.experiments.reports import differences


def row(scores: dict, task: str = "maze", **config) -> list[dict]:
    shared = {"estimator": "bptt", "model": "trm", "token_accuracy": 0.5, "config": {"task": config}}
    return [{**shared, "task": task, "seed": seed, "exact_accuracy": score} for seed, score in scores.items()]


def test_a_row_is_paired_by_seed_with_the_first_of_its_task():
    first, other = {0: 0.50, 1: 0.60, 2: 0.70}, {2: 0.65, 1: 0.58, 0: 0.47}
    header, lines = differences.table(["model"], [["a"], ["b"]], [row(first), row(other)])
    assert header == ["model", "points above the first", "95 % interval", "each seed"]
    expected = ttest_rel([47, 58, 65], [50, 60, 70]).confidence_interval(0.95)
    assert lines == [["b", "-3.3", f"{expected.low:+.1f} to {expected.high:+.1f}", "-3.0, -2.0, -5.0"]]


def test_rows_of_another_task_are_compared_among_themselves():
    rows = [row({0: 0.1, 1: 0.1}), row({0: 0.2, 1: 0.4}, "recall"), row({0: 0.3, 1: 0.5}, "recall")]
    _, lines = differences.table(["job"], [["0"], ["1"], ["2"]], rows)
    assert lines == [["2", "+10.0", "+10.0 to +10.0", "+10.0, +10.0"]]
    rows = [row({0: 0.1, 1: 0.1}, length=4), row({0: 0.2, 1: 0.4}, length=8)]
    assert differences.table(["job"], [["0"], ["1"]], rows) == ([], [])


@pytest.mark.parametrize("others", [{0: 0.5}, {3: 0.1, 4: 0.2}, {0: 0.5, 1: None}])
def test_what_one_seed_says_is_no_difference(others):
    rows = [row({0: 0.1, 1: 0.2}), row(others)]
    assert differences.table(["job"], [["0"], ["1"]], rows) == ([], [])
