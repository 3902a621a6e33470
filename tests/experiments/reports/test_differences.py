"""Differences paired by seed: beside scipy's paired t-test, from the first row of each task, none from one seed."""

import pytest
from scipy.stats import ttest_rel

from loopgrad.experiments.reports import differences

FIRST = ["samples", "first", "-", "-"]


def row(scores: list[tuple[int, float | None]], task: str = "maze", tokens: float = 0.5, **config) -> list[dict]:
    shared = {"estimator": "bptt", "model": "trm", "token_accuracy": tokens, "config": {"task": config}}
    return [{**shared, "task": task, "seed": seed, "exact_accuracy": score} for seed, score in scores]


def lines(*rows: list[dict]) -> list[list[str]]:
    return differences.table(["job"], [[str(i)] for i in range(len(rows))], rows)[1]


def test_a_row_is_paired_by_seed_with_the_first_of_its_task():
    rows = [row([(0, 0.50), (1, 0.60), (2, 0.70)]), row([(2, 0.65), (1, 0.58), (0, 0.47)])]
    header, found = differences.table(["model"], [["a"], ["b"]], rows)
    assert header == ["model", "of", "points above the first", "95 % interval", "each seed"]
    expected = ttest_rel([47, 58, 65], [50, 60, 70]).confidence_interval(0.95)
    interval = f"{expected.low:+.1f} to {expected.high:+.1f}"
    assert found == [["a", *FIRST], ["b", "samples", "-3.3", interval, "-3.0, -2.0, -5.0"]]


def test_rows_of_another_task_are_compared_among_themselves_by_what_tells_them_apart():
    texts = [row([(0, 0.0), (1, 0.0)], "text", tokens) for tokens in (0.2, 0.3)]
    mazes = [row([(0, 0.1), (1, 0.1)]), row([(0, 0.2), (1, 0.4)])]
    assert lines(*mazes, *texts) == [
        ["0", *FIRST],
        ["1", "samples", "+20.0", "-", "+10.0, +30.0"],
        ["2", "tokens", "first", "-", "-"],
        ["3", "tokens", "+10.0", "-", "+10.0, +10.0"],
    ]
    assert lines(row([(0, 0.1), (1, 0.1)], length=4), row([(0, 0.2), (1, 0.4)], length=8)) == []


def test_a_seed_that_comes_twice_is_one_pair():
    rows = row([(0, 0.0), (0, 0.2), (1, 0.3), (2, 0.4)]), row([(0, 0.3), (1, 0.3), (1, 0.5), (2, 0.4)])
    expected = ttest_rel([30, 40, 40], [10, 30, 40]).confidence_interval(0.95)
    assert lines(*rows)[1][2:] == ["+10.0", f"{expected.low:+.1f} to {expected.high:+.1f}", "+20.0, +10.0, +0.0"]


def test_the_first_row_is_the_first_with_scores_and_a_row_without_pairs_says_so():
    none, some = row([(0, 0.1), (1, None)]), row([(0, 0.4996), (1, 0.4996)])
    found = lines(none, row([(0, 0.5), (1, 0.5)]), some)
    assert found[0] == ["0", "samples", "-", "-", "-40.0"] and found[1] == ["1", *FIRST]
    assert found[2] == ["2", "samples", "+0.0", "-", "+0.0, +0.0"]


@pytest.mark.parametrize("others", [[(0, 0.5)], [(3, 0.1), (4, 0.2)], [(0, 0.5), (1, None)]])
def test_what_one_seed_says_is_no_difference(others):
    assert lines(row([(0, 0.1), (1, 0.2)]), row(others)) == []
