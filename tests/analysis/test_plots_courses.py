"""The figure of conditions along an axis: its table beside sums by hand, and what is drawn of it."""

import math

import numpy as np
import pytest

from loopgrad.analysis.plots import Course, conditions


def test_means_and_extremes_are_those_of_the_seeds_at_each_place():
    draw = np.random.default_rng(0)
    values = draw.random((3, 4))
    courses = [Course("deep", [8, 1, 4, 2], row.tolist()) for row in values] + [Course("shallow", [1], [0.5])]
    drawn = conditions(courses, "segments", "solved")
    order = [1, 3, 2, 0]
    expected = [
        {
            "condition": "deep",
            "x": float([8, 1, 4, 2][i]),
            "mean": pytest.approx(sum(values[:, i]) / 3, rel=1e-14),
            "seeds": 3,
            "low": min(values[:, i]),
            "high": max(values[:, i]),
        }
        for i in order
    ]
    assert drawn.table[:4] == expected
    assert drawn.table[4] == {"condition": "shallow", "x": 1.0, "mean": 0.5, "seeds": 1, "low": 0.5, "high": 0.5}
    (axis,) = drawn.figure.axes
    deep, shallow = axis.get_lines()
    assert deep.get_xdata().tolist() == [1, 2, 4, 8] and shallow.get_ydata().tolist() == [0.5]
    assert deep.get_ydata().tolist() == [row["mean"] for row in drawn.table[:4]]
    assert [deep.get_label(), shallow.get_label()] == ["deep", "shallow"]


def test_what_is_missing_or_not_finite_is_left_out_and_counted():
    courses = [Course("a", [1, 2], [0.25, None]), Course("a", [1, 2], [math.nan, math.inf]), Course("a", [1], [0.75])]
    assert conditions(courses, "x", "y").table == [
        {"condition": "a", "x": 1.0, "mean": 0.5, "seeds": 2, "low": 0.25, "high": 0.75}
    ]
    nothing = conditions([Course("a", [1], [None])], "x", "y", log=True)
    assert nothing.table == []


@pytest.mark.parametrize(("values", "bottom"), [([0.0, 0.0], 0.0), ([40.0, 60.0], 0.0), ([-5.0, 5.0], None)])
def test_shares_are_drawn_from_zero(values, bottom):
    (axis,) = conditions([Course("a", [1, 2], values)], "x", "y").figure.axes
    low, high = axis.get_ylim()
    assert high > max(values) and (low == bottom if bottom is not None else low < min(values))


def test_an_axis_of_segments_is_logarithmic():
    drawn = conditions([Course("a", [1, 2, 64], [0.1, 0.2, 0.3])], "segments", "solved", log=True)
    assert drawn.figure.axes[0].get_xscale() == "log"


def test_time_grows_with_the_values_and_not_with_their_square():
    class Counted(list):
        reads = 0

        def __iter__(self):
            Counted.reads += 1
            return super().__iter__()

    places = Counted(range(1, 3001))
    assert len(conditions([Course("a", places, [0.5] * 3000)], "x", "y").table) == 3000
    assert Counted.reads <= 3


def test_nothing_to_draw_and_values_without_a_place_are_refused():
    with pytest.raises(ValueError, match="courses is empty"):
        conditions([], "x", "y")
    with pytest.raises(ValueError, match="a: 2 values at 1 places"):
        conditions([Course("a", [1], [0.5, 0.6])], "x", "y")


@pytest.mark.parametrize(("places", "whole"), [([8, 9, 11], True), ([0.5, 1.0], False)])
def test_counts_have_no_ticks_between_them(places, whole):
    (axis,) = conditions([Course("a", places, [0.5] * len(places))], "empty", "y").figure.axes
    assert all(float(tick).is_integer() for tick in axis.get_xticks()) == whole
