"""The figure of estimated gradients: every point is drawn where its table says, laws and ticks with them."""

import math

import pytest

from loopgrad.analysis.plots import Estimate, forward_cosines, save


def test_lines_are_the_points_in_the_order_of_their_values():
    points = [
        Estimate("weights", "tangents", 64, 0.5, 0.51),
        Estimate("weights", "tangents", 1, 0.1, 0.12),
        Estimate("state", "tangents", 1, 0.4, math.nan),
        Estimate("state", "updates", 8, -0.2),
    ]
    drawn = forward_cosines(points)
    assert [row["law"] for row in drawn.table] == [0.51, 0.12, None, None]
    left, right = drawn.figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in left.get_lines()}
    assert lines["weights"] == [[1, 0.1], [64, 0.5]] and lines["law"] == [[1, 0.12], [64, 0.51]]
    assert lines["state"] == [[1, 0.4]] and "exact" in lines
    assert [line.get_label() for line in right.get_lines()][:1] == ["exact"]
    assert "law" not in [line.get_label() for line in right.get_lines()]
    assert left.get_ylim() == right.get_ylim() and right.get_ylim()[0] < -0.2  # nothing is cut off
    assert (left.get_xlabel(), right.get_xlabel()) == ("tangents", "updates")
    assert left.get_xticks().tolist() == [1, 64] and right.get_xticks().tolist() == [8]


def test_many_values_are_not_all_named_and_what_is_not_finite_is_only_in_the_table(tmp_path):
    points = [Estimate("a", "updates", value, math.nan if value == 3 else 0.5) for value in range(1, 13)]
    drawn = forward_cosines(points)
    (axis,) = drawn.figure.axes
    assert axis.get_xticks().tolist() == [1, 4, 7, 10]
    assert drawn.table[2]["cosine"] is None and len(drawn.table) == 12
    assert [path.suffix for path in save(drawn, tmp_path / "figure")] == [".svg", ".png", ".json"]


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="points is empty"):
        forward_cosines([])
    with pytest.raises(ValueError, match="above 0"):
        forward_cosines([Estimate("a", "updates", 0, 0.5)])
