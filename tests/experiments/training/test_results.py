"""What records tell of a log, its last scores and those of every evaluation, and of the command line."""

import pytest

from loopgrad.experiments.conf.values import Names
from loopgrad.experiments.training import results
from loopgrad.experiments.training.results import scores


def entry(step, **held_out):
    return {"step": step, "loss": 1.0, **{f"test_{name}": value for name, value in held_out.items()}}


def test_scores_are_those_of_the_evaluations():
    one = {"loss": 2.0, "exact_accuracy": 0.5, "match_accuracy": 0.25, "token_accuracy": 0.75}
    two = {"loss": 1.5, "exact_accuracy": 1.0, "match_accuracy": 0.5, "token_accuracy": 1.0}
    last, curves = scores([entry(1), entry(2, **one), entry(3), entry(4, **two)])
    assert last == two
    assert curves == {
        "step": [2, 4], "exact_accuracy": [0.5, 1.0], "match_accuracy": [0.25, 0.5], "token_accuracy": [0.75, 1.0]
    }  # fmt: skip


def test_a_log_that_an_earlier_version_began_has_no_curve_of_what_it_did_not_log():
    old = {"loss": 2.0, "exact_accuracy": 0.5, "token_accuracy": 0.75}
    last, curves = scores([entry(1, **old), entry(2, **old, match_accuracy=0.5)])
    assert last == {**old, "match_accuracy": 0.5}
    assert curves.keys() == {"step", "exact_accuracy", "token_accuracy"}
    last, curves = scores([entry(1, **old)])
    assert last == old and curves.keys() == {"step", "exact_accuracy", "token_accuracy"}


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ((), {"overrides": []}),
        (("a=1", "+b.c=2"), {"overrides": ["a=1", "+b.c=2"]}),
        (("a=" + "x" * 998,), {"overrides": ["a=" + "x" * 998]}),
        (("a=" + "x" * 999,), {}),
        (("a=1",) * 1001, {}),
        (None, {}),
    ],
)
def test_overrides_are_told_unless_they_are_longer_than_a_record_may_hold(typed, told):
    assert results._overrides(Names("task", "model", typed)) == told
