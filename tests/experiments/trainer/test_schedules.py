"""Schedules against closed forms, the official cosine among them."""

import math

import pytest

from loopgrad.experiments.trainer import Constant, Cosine, Linear


def official(step, warmup, steps, least):
    """The factor in the code of HRM and TRM: a cosine with warm-up and a least ratio, of a step counted from 1."""
    if step < warmup:
        return step / max(1, warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    return least + max(0.0, (1 - least) * 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * progress)))


@pytest.mark.parametrize(("steps", "warmup"), [(100, 20), (7, 0), (5, 5), (5, 9), (1, 1), (3, 1)])
def test_the_cosine_is_the_official_one_and_the_constant_that_with_a_least_ratio_of_one(steps, warmup):
    for step in range(1, steps + 1):
        for least in (0.0, 0.1, 1.0):
            assert Cosine(least).factor(step, steps, warmup) == pytest.approx(official(step, warmup, steps, least))
        assert Constant().factor(step, steps, warmup) == pytest.approx(official(step, warmup, steps, 1.0))
        assert Constant().factor(step, steps, warmup) == min(1.0, step / max(1, warmup))  # as it ever was


def test_the_line_falls_by_the_same_at_each_step():
    factors = [Linear(0.2).factor(step, 14, 4) for step in range(4, 15)]
    assert factors[0] == 1 and factors[-1] == pytest.approx(0.2)
    falls = [one - next_ for one, next_ in zip(factors, factors[1:], strict=False)]
    assert falls == pytest.approx([0.08] * 10)
    assert [Linear(0.2).factor(step, 14, 4) for step in (1, 2, 3)] == [0.25, 0.5, 0.75]


@pytest.mark.parametrize("kind", [Cosine, Linear])
@pytest.mark.parametrize("least", [-0.1, 1.1, float("nan")])
def test_a_least_ratio_that_is_none_is_refused(kind, least):
    with pytest.raises(ValueError, match="min_ratio"):
        kind(least)
