"""The figure of loss over FLOPs and bytes: its table, and what is left out of it."""

import math

import pytest

from loopgrad.analysis.plots import Learning, learning


def test_every_loss_is_in_the_table_and_only_what_logarithms_can_show_is_drawn():
    curves = [
        Learning("bptt", "sum", 2**20, [0, 1e9, 2e9], [[1.0, 0.5, 0.1], [1.0, 0.3, 0.2]]),
        Learning("noisy", "sum", 2**18, [0, 2e9, 4e9], [[1.0, 0.5, math.nan], [1.0, 0.3, 0.2]]),
        Learning("bptt", "modulo", 2**21, [0, 1e9], [[0.7, 0.6]]),
    ]
    drawn = learning(curves)
    assert len(drawn.table) == 6 + 6 + 2
    assert drawn.table[8] == {
        "estimator": "noisy", "case": "sum", "run": 0, "bytes": 2.0**18, "flops": 4e9, "loss": None
    }  # fmt: skip
    above, below = (drawn.figure.axes[i] for i in (0, 2))
    bptt, noisy = above.get_lines()
    assert list(bptt.get_xdata()) == [1e9, 2e9] and list(bptt.get_ydata()) == pytest.approx([0.4, 0.15])
    assert list(noisy.get_xdata()) == [2e9]
    (point,) = [line for line in below.get_lines() if line.get_linestyle() == "None" and len(line.get_xdata()) == 1][:1]
    assert point.get_xdata()[0] == 1.0 and point.get_ydata()[0] == pytest.approx(0.15)
    assert [axis.get_title() for axis in drawn.figure.axes] == ["sum", "modulo", "", ""]


def test_nothing_to_draw_and_losses_without_flops_are_refused():
    with pytest.raises(ValueError, match="curves is empty"):
        learning([])
    with pytest.raises(ValueError, match="bptt, sum: 2 losses at 1 FLOPs"):
        learning([Learning("bptt", "sum", 1, [1], [[1.0, 0.5]])])


def test_runs_that_end_alike_are_drawn_though_their_mean_is_off_by_rounding():
    drawn = learning([Learning("bptt", "sum", 2**20, [1e9, 2e9], [[0.1, 0.7], [0.1, 0.7], [0.1, 0.7]])])
    assert len(drawn.table) == 6
