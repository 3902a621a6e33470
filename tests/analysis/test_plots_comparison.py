"""The figures of a comparison: means and ranges over seeds in the table and on the axes, and what is refused."""

import numpy as np
import pytest

from loopgrad.analysis.plots import Case, Run, accuracy_and_cost, accuracy_and_cost_by_case, residuals_by_estimator
from loopgrad.analysis.plots.style import whiskers

RUNS = [
    Run("bptt", [50, 100], [40, 80], 82, 2**21, 1.0, 1.0, {"z_L": [0.5, None], "z_H": [None, 0.25]}),
    Run("bptt", [50, 100], [60, 100], 98, 2**21, 1.0, 1.0, {"z_L": [0.25, None], "z_H": [None, 0.0]}),
    Run("forward", [50, 100], [0, 10], 20, 0, 3.0, 0.5, {"z_L": [0.1, None], "z_H": [None, None]}),
    Run("untimed", [50], [5], 5, 2**20, residuals={"z_L": [0.2, None], "z_H": [None, 0.2]}),
]


def test_marks_are_means_over_seeds_and_bands_their_range():
    drawn = accuracy_and_cost(RUNS, "two seeds")
    assert drawn.table[:2] == [
        {"estimator": "bptt", "step": 50, "accuracy": 50.0, "low": 40.0, "high": 60.0},
        {"estimator": "bptt", "step": 100, "accuracy": 90.0, "low": 80.0, "high": 100.0},
    ]
    bptt, forward, untimed = drawn.table[-3:]
    assert bptt == {
        "estimator": "bptt", "accuracy": 90.0, "low": 82.0, "high": 98.0, "bytes": 2.0**21, "time_ratio": 1.0,
        "cosine": 1.0,
    }  # fmt: skip
    assert (forward["bytes"], untimed["time_ratio"], untimed["cosine"]) == (0, None, None)
    curve, cost, angle = drawn.figure.axes
    assert [list(line.get_ydata()) for line in curve.get_lines()] == [[50, 90], [0, 10], [5]]
    at = {round(line.get_xdata()[0], 3): line.get_ydata()[0] for line in cost.get_lines() if line.get_marker() in "osD"}
    assert at == {2.0: 90, 0.1: 20, 1.0: 5} and cost.get_xscale() == "log"
    assert [tuple(map(float, line.get_xydata()[0])) for line in angle.get_lines()][:2] == [(1.0, 1.0), (3.0, 0.5)]
    assert angle.get_xlim()[0] == 0 and drawn.figure.get_suptitle() == "two seeds"
    assert accuracy_and_cost(RUNS[2:3]).figure.axes[1].get_xscale() == "linear"


def test_residuals_are_means_over_seeds_where_a_stream_was_updated_and_zeros_are_left_out_of_the_figure():
    drawn = residuals_by_estimator(RUNS, "update in the second segment")
    assert drawn.table[:2] == [
        {"estimator": "bptt", "stream": "z_L", "update": 1, "residual": 0.375, "zeros": 0},
        {"estimator": "bptt", "stream": "z_H", "update": 2, "residual": 0.125, "zeros": 1},
    ]
    assert len(drawn.table) == 5
    z_l, z_h = drawn.figure.axes
    assert [list(line.get_ydata()) for line in z_l.get_lines()] == [[0.375], [0.1], [0.2]]
    assert [list(line.get_ydata()) for line in z_h.get_lines()] == [[], [], [0.2]]
    assert [axis.get_title() for axis in (z_l, z_h)] == ["z_L", "z_H"]
    assert z_h.get_xlabel() == "update in the second segment"


def test_what_cannot_be_compared_is_refused():
    for draw in (accuracy_and_cost, residuals_by_estimator):
        with pytest.raises(ValueError, match="runs is empty"):
            draw([])
    with pytest.raises(ValueError, match="those of bptt must have one accuracy at each of the same steps"):
        accuracy_and_cost([RUNS[0], RUNS[1]._replace(steps=[50, 90])])
    for wrong in ([RUNS[0]._replace(residuals={})], [RUNS[0], RUNS[1]._replace(residuals={"z_L": [0.5]})]):
        with pytest.raises(ValueError, match="residuals of the same streams and as many updates"):
            residuals_by_estimator(wrong)


def test_cases_stand_below_each_other_with_the_looks_and_scales_of_one_figure():
    other = [run._replace(accuracy=run.accuracy / 2) for run in RUNS[2:] + RUNS[:2]]
    cases = [
        Case("easy", RUNS[:3]),
        Case("a long name that reaches over more than the first panel", other, "tokens right (%)"),
    ]
    drawn = accuracy_and_cost_by_case(cases)
    for case in cases:
        rows = [{key: row[key] for key in row if key != "case"} for row in drawn.table if row["case"] == case.name]
        assert rows == accuracy_and_cost(case.runs).table
    above, below = drawn.figure.axes[:3], drawn.figure.axes[3:]
    colours = [{line.get_label(): line.get_color() for line in axes[0].get_lines()} for axes in (above, below)]
    assert colours[0].items() <= colours[1].items() and len(set(colours[1].values())) == 3
    assert {axis.get_ylim() for axis in (*above[:2], *below[:2])} == {(-4, 106)}
    assert [axis.get_ylabel() for axis in (above[0], below[0])] == ["held-out samples exact (%)", "tokens right (%)"]
    assert [axis.get_xlabel() for axis in above] == [""] * 3 and all(axis.get_xlabel() for axis in below)
    assert [axis.get_title(loc="left") for axis in (above[0], below[0])] == [case.name for case in cases]
    assert len(drawn.figure.legends[0].get_texts()) == 3
    drawn.figure.draw_without_rendering()
    widths = {round(axis.get_position().width, 2) for axis in drawn.figure.axes}
    assert max(widths) - min(widths) < 0.02, "a title takes no width from the panels"


def test_cases_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="cases is empty"):
        accuracy_and_cost_by_case([])
    with pytest.raises(ValueError, match="runs is empty"):
        accuracy_and_cost_by_case([Case("a", RUNS), Case("b", [])])


@pytest.mark.parametrize("accuracy", [96.6, 0.7 * 100, 100 / 3])
def test_seeds_that_end_alike_are_drawn_though_their_mean_is_off_by_rounding(accuracy):
    runs = [Run("bptt", [1], [accuracy], accuracy, 2**20, residuals={"z": [0.5]})] * 3
    assert accuracy_and_cost(runs).table[-1]["accuracy"] == pytest.approx(accuracy)
    assert (whiskers(np.mean([96.6] * 3), 96.6, 96.6) >= 0).all()
    assert whiskers([2.0, 5.0], [1.0, 5.0], [4.0, 6.0]).tolist() == [[1.0, 0.0], [2.0, 1.0]]
