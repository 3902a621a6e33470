"""What jobs differ in: by their overrides, or by their configurations where overrides do not say it all."""

import pytest

from loopgrad.experiments.reports.sweep_rows import rows_of


def run(estimator, seed, typed=None, **trainer):
    found = {"estimator": estimator, "seed": seed, "task": "maze", "model": "trm", "config": {"trainer": trainer}}
    return found if typed is None else {**found, "overrides": list(typed)}


def jobs(*typed, rates=(1, 2)):
    """Jobs of two estimators and two seeds each, which differ in two keys of their configuration."""
    return {
        number: [run(name, seed, it, rate=rate, size=rate) for name in ("bptt", "one_step") for seed in (0, 1)]
        for number, (it, rate) in enumerate(zip(typed, rates, strict=True))
    }


def told(found):
    keys, rows = rows_of(found)
    return keys, [(row.jobs, row.values, row.estimator, [record["seed"] for record in row.records]) for row in rows]


def test_keys_are_those_of_the_overrides_that_differ():
    first, second = ("experiment=a", "seeds=[0,1]", "workers=1"), ("+experiment=b=c", "seeds=[1,0]", "workers=1")
    assert told(jobs(first, second)) == (
        ["experiment"],
        [
            ([0, 0], ["a"], "bptt", [0, 1]),
            ([0, 0], ["a"], "one_step", [0, 1]),
            ([1, 1], ["b=c"], "bptt", [0, 1]),
            ([1, 1], ["b=c"], "one_step", [0, 1]),
        ],
    )


def test_one_that_was_not_typed_for_all_has_no_value_there():
    keys, rows = told(jobs(("a=1", "~b"), ("a=1", "c.d=2")))
    assert keys == ["b", "c.d"] and [values for _, values, *_ in rows[1:3]] == [["~", ""], ["", "2"]]


@pytest.mark.parametrize("typed", [(("a=1",), None), (None, None), (("a=1",), ("a=1",)), ((), ()), (("seed=1",), ())])
def test_what_overrides_do_not_tell_apart_the_configurations_do(typed):
    keys, rows = told(jobs(*typed))
    assert keys == ["trainer.rate", "trainer.size"] and [values for _, values, *_ in rows[1:3]] == [
        ["1", "1"],
        ["2", "2"],
    ]


def test_seeds_of_several_jobs_are_together():
    found = {number: [run("bptt", number, (f"seed={number}", "estimator=bptt"), rate=1)] for number in range(3)}
    assert told(found) == ([], [([0, 1, 2], [], "bptt", [0, 1, 2])])


def test_long_values_that_begin_alike_are_two():
    found = {n: [run("bptt", 0, [f"a={'x' * 900}{n}"])] for n in range(2)}
    assert [row.jobs for row in rows_of(found)[1]] == [[0], [1]]


def test_where_results_went_and_how_many_worked_on_them_tells_no_jobs_apart():
    first, second = ("a=1", "output_dir=x", "workers=1", "timing_repeats=3"), ("a=2", "output_dir=y", "logger=csv")
    assert told(jobs(first, second))[0] == ["a"]
