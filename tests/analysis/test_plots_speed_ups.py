"""The figure of chains that become shorter: lines in order, crosses where the states are others."""

import pytest

from loopgrad.analysis.plots import SpeedUp, speed_ups


def test_lines_are_in_the_order_of_exponents_and_lost_points_crossed_out():
    points = [SpeedUp("a", 0.1, 64, 128, False), SpeedUp("a", -0.5, 64, 16, True), SpeedUp("b", 0.0, 64, 64, True)]
    drawn = speed_ups(points)
    assert [row["speed_up"] for row in drawn.table] == [0.5, 4.0, 1.0]
    lines = {line.get_label(): line for line in drawn.figure.axes[0].get_lines()}
    assert list(lines["a"].get_xdata()) == [-0.5, 0.1] and list(lines["a"].get_ydata()) == [4.0, 0.5]
    crosses = [line for line in drawn.figure.axes[0].get_lines() if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[0.1]] and crosses[0].get_label() == "steps ran out"
    assert all(line.get_marker() != "x" for line in speed_ups(points[1:]).figure.axes[0].get_lines())


def test_refusals():
    with pytest.raises(ValueError, match="points"):
        speed_ups([])
    with pytest.raises(ValueError, match="a depth must be at least 1"):
        speed_ups([SpeedUp("a", 0.1, 64, 0, False)])
