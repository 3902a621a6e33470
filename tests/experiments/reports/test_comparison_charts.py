"""Charts of a comparison from records made by hand: where their points lie."""

import math

import pytest

from loopgrad.experiments.reports import comparison_page, summary
from loopgrad.experiments.reports.html.charts import drawn
from tests.experiments.reports.test_summary import made


def losses_by_flops(*found):
    charts = {chart.title: chart for chart in comparison_page.charts(summary.by_estimator(found))}
    return charts["Training loss and FLOPs"]


def curve(*losses):
    return {"step": [len(losses)], "exact_accuracy": [0.5], "train_loss": list(losses)}


def test_losses_lie_where_the_flops_of_their_steps_are_spent():
    chart = losses_by_flops(
        made(seed=0, flops=2e6, curve=curve(3.0, 2.0, 1.0)),
        made(seed=1, flops=2e6, curve=curve(1.0, 1.0, 0.0)),
        made("low_rank", flops=5e9, curve=curve(3.0, 2.5, None)),
    )
    points = {series.name: [(point.x, point.y) for point in series.points] for series in chart.series}
    assert points == {"bptt": [(2e6, 2.0), (4e6, 1.5), (6e6, 0.5)], "low_rank": [(5e9, 3.0), (10e9, 2.5)]}
    assert chart.log_x and not chart.log_y and len(drawn(chart).series) == 2


@pytest.mark.parametrize("flops", [None, 0, math.nan])
def test_an_estimator_whose_flops_are_not_known_has_no_line(flops):
    chart = losses_by_flops(made(), made("other", flops=flops))
    assert [line.name for line in drawn(chart).series] == ["bptt"]
