"""Figures of residuals and verdicts show the numbers of their tables, and these are what numpy and scipy find."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from loopgrad.analysis import classify, record
from loopgrad.analysis.plots import heatmap, residuals, token_map, verdict_bars
from loopgrad.analysis.verdicts import FLOORS, LABELS
from loopgrad.gradients import Stationary


def linear(num_steps=32, batch=9, scale=0.5):
    """A trace of z -> A z, and its states (T + 1, B, n)."""
    generator = torch.Generator().manual_seed(0)
    a = scale * torch.randn(4, 4, generator=generator, dtype=torch.float64) / 2
    z = torch.randn(batch, 4, generator=generator, dtype=torch.float64)
    states = [z]
    for _ in range(num_steps):
        states.append(states[-1] @ a.T)
    trace = record(Stationary(lambda z, x: z @ a.T), z, None, num_steps, lags=4)
    return trace, torch.stack(states).numpy()


def relative(states):
    scale = np.quantile(np.linalg.norm(states, axis=2), 0.9, axis=0)
    return np.linalg.norm(np.diff(states, axis=0), axis=2) / scale  # (T, B)


def column(rows, key):
    return np.array([row[key] for row in rows], dtype=float)


class TwoStreams(torch.nn.Module):
    """Updates a, then b: each rests while the other moves."""

    period = 2

    def forward(self, state, inputs, step):
        a, b = state["a"], state["b"]
        return {"a": a / 2 + b / 4, "b": b} if step % 2 == 0 else {"a": a, "b": b / 2 + a / 4}


def two_streams():
    start = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return record(TwoStreams(), {"a": start, "b": -3 * start}, None, 40, lags=4)


@pytest.mark.parametrize("kind", ["cycle", "update"])
def test_residuals_are_quantiles_of_the_states_and_the_lines_are_the_table(kind):
    trace, states = linear()
    drawn = residuals(trace, kind=kind, segment=8, horizon=16)
    low, median, high = np.quantile(relative(states), (0.05, 0.5, 0.95), axis=1)
    np.testing.assert_allclose(column(drawn.table, "low"), low, rtol=1e-9)
    np.testing.assert_allclose(column(drawn.table, "median"), median, rtol=1e-9)
    np.testing.assert_allclose(column(drawn.table, "high"), high, rtol=1e-9)
    (axis,) = drawn.figure.axes
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert lines["all n=9"].get_ydata().tolist() == column(drawn.table, "median").tolist()
    assert list(lines["all n=9"].get_xdata()) == list(range(1, 33))
    assert lines["training depth"].get_xdata() == [16, 16]
    assert set(lines["rounding floor"].get_ydata()) == {FLOORS["float64"]}
    assert [line.get_xdata()[0] for line in axis.get_lines()][:3] == [8, 16, 24]


def test_solved_and_unsolved_samples_are_drawn_apart():
    trace, states = linear()
    correct = np.arange(9) < 3
    drawn = residuals(trace, correct)
    found = relative(states)
    for name, chosen in (("solved n=3", correct), ("unsolved n=6", ~correct)):
        rows = [row for row in drawn.table if row["group"] == name]
        np.testing.assert_allclose(column(rows, "median"), np.median(found[:, chosen], axis=1), rtol=1e-9)
    assert {row["group"] for row in residuals(trace, np.ones(9, dtype=bool)).table} == {"solved n=9"}


def test_a_zero_is_drawn_at_a_tenth_of_the_floor_and_counted():
    start = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    trace = record(Stationary(lambda z, x: z * (z > 0.3) / 2), start, None, 4)
    rows = residuals(trace, floor=1e-3).table
    assert [row["zeros"] for row in rows] == [1, 1, 1, 2]
    assert residuals(trace, floor=0.0).table[3]["high"] == pytest.approx(trace.relative["state"][2, 0] / 10)
    assert rows[3]["median"] == rows[3]["high"] == pytest.approx(1e-4) and rows[0]["floor"] == 1e-3


def test_a_stream_that_rests_has_rows_only_where_it_moves_and_joint_is_the_root_of_squares():
    trace = two_streams()
    rows = residuals(trace, kind="update").table
    assert [row["update"] for row in rows if row["stream"] == "a"] == list(range(1, 41, 2))
    assert [row["update"] for row in rows if row["stream"] == "b"] == list(range(2, 41, 2))
    joint = residuals(trace, streams=["joint"]).table
    moved = np.sqrt(trace.cycle["a"] ** 2 + trace.cycle["b"] ** 2)
    expected = moved / np.sqrt(trace.scale["a"] ** 2 + trace.scale["b"] ** 2)
    assert [row["update"] for row in joint] == list(range(2, 41))
    np.testing.assert_allclose(column(joint, "median"), np.median(expected[1:], axis=1), rtol=1e-12)
    moved = residuals(trace, streams=["joint"], kind="update").table
    expected = trace.update["a"][0] / np.hypot(trace.scale["a"], trace.scale["b"])
    assert moved[0]["median"] == pytest.approx(np.median(expected), rel=1e-12)


def test_a_sample_that_diverges_is_missing_and_not_zero():
    start = torch.tensor([[0.5], [1e100]], dtype=torch.float64)
    trace = record(Stationary(lambda z, x: z.square()), start, None, 20, lags=2)
    for kind in ("cycle", "update"):
        rows = residuals(trace, kind=kind).table
        assert {(row["samples"], row["missing"]) for row in rows} == {(1, 1)}
        assert rows[0]["high"] == pytest.approx(trace.relative["state"][0, 0])
    assert {row["sample"] for row in heatmap(trace, _joint(2)).table} == {0}
    lost = record(Stationary(lambda z, x: z.square()), start[1:], None, 20, lags=2)
    assert residuals(lost).table == [] == heatmap(lost, _joint(1)).table


def _joint(batch):
    return classify(record(Stationary(lambda z, x: z / 2), torch.ones(batch, 1), None, 20, lags=2))["joint"]


def test_residuals_name_the_argument_that_is_wrong():
    trace, _ = linear()
    empty, _ = linear(num_steps=0)
    with pytest.raises(ValueError, match="trace holds no update"):
        residuals(empty)
    for given, message in (
        ({"streams": []}, "streams is empty"),
        ({"streams": ["z"]}, "stream 'z' is not one of"),
        ({"kind": "map"}, "kind 'map' is not one of"),
        ({"correct": np.ones(3, dtype=bool)}, r"correct has shape \(3,\)"),
        ({"segment": 0}, "segment is a number"),
        ({"horizon": 0}, "horizon is a number"),
        ({"floor": -1.0}, "floor is a relative"),
    ):
        with pytest.raises(ValueError, match=message):
            residuals(trace, **given)


COUNTS = {"a": {"orbit": 3, "converged": 13, "drift": 4}, "b": {"chaotic": 64}, "none": {}}


def test_bars_are_shares_stacked_from_the_label_on_with_wilsons_interval():
    drawn = verdict_bars(COUNTS)
    rows = {(row["row"], row["label"]): row for row in drawn.table}
    assert [label for name, label in rows if name == "a"] == ["converged", "drift", "orbit"]
    assert [rows["a", label]["left"] for label in ("converged", "drift", "orbit")] == [0, 13 / 20, 17 / 20]
    for name, count, total in (("a", 13, 20), ("b", 0, 64)):
        interval = binomtest(count, total).proportion_ci(0.95, method="wilson")
        assert (rows[name, "converged"]["low"], rows[name, "converged"]["high"]) == pytest.approx(tuple(interval))
    assert rows["a", "orbit"]["low"] is None and rows["none", "converged"]["share"] is None
    axis = drawn.figure.axes[0]
    widths = {(round(p.get_y()), round(p.get_x(), 9)): p.get_width() for p in axis.patches}
    assert widths[0, 0] == 65 and widths[0, 65] == 20 and widths[0, 85] == 15 and widths[1, 0] in (0, 100)
    assert [text.get_text() for text in axis.texts] == ["n=20", "n=64", "n=0"]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["a", "b", "none"]


def test_another_label_may_stand_first_and_a_verdict_has_one_colour():
    first = verdict_bars(COUNTS, label="chaotic")
    assert next(row["label"] for row in first.table) == "chaotic"
    every = verdict_bars({"all": dict.fromkeys(LABELS, 1)})
    assert len({(p.get_facecolor(), p.get_hatch()) for p in every.figure.axes[0].patches}) == len(LABELS)
    colours = [
        next(c.patches[0].get_facecolor() for c in drawn.figure.axes[0].containers if c.get_label() == "chaotic")
        for drawn in (first, every)
    ]
    assert colours[0] == colours[1]
    tall = verdict_bars({str(i): {"drift": 1} for i in range(40)}).figure.get_figheight()
    assert tall > 40 * 0.15 > every.figure.get_figheight()


@pytest.mark.parametrize(
    ("rows", "label", "message"),
    [({}, "converged", "rows is empty"), (COUNTS, "done", "'done' is not"), ({"a": {"drift": -1}}, "drift", "rows")],
)
def test_bars_name_the_argument_that_is_wrong(rows, label, message):
    with pytest.raises(ValueError, match=message):
        verdict_bars(rows, label)


@pytest.mark.parametrize("stream", ["a", "joint"])
def test_a_heatmap_sorts_samples_by_verdict_and_shows_the_logarithms_of_its_table(stream):
    trace = two_streams()
    verdicts = classify(trace)[stream]
    verdicts.label[1:3] = "drift"
    drawn = heatmap(trace, verdicts)
    labels = [row["label"] for row in drawn.table[:: trace.num_steps - 1]]
    assert labels == sorted(verdicts.label, key=LABELS.index)
    parts = ["a"] if stream == "a" else ["a", "b"]
    moved = np.sqrt(sum(trace.cycle[s] ** 2 for s in parts) / sum(trace.scale[s] ** 2 for s in parts))
    for row in drawn.table:
        assert row["log10_residual"] == pytest.approx(np.log10(moved[row["update"] - 1, row["sample"]]))
    picture = drawn.figure.axes[0].collections[0].get_array()
    assert picture.ravel().tolist() == column(drawn.table, "log10_residual").tolist()
    assert [text.get_text() for text in drawn.figure.axes[0].texts] == ["converging n=3", "drift n=2"]
    with pytest.raises(ValueError, match="verdicts are of 2 samples"):
        heatmap(trace, _joint(2))


def test_tokens_stand_row_by_row():
    drawn = token_map(np.array([1.0, 2.0, np.nan, 4.0, 5.0, 6.0]), (2, 3), "abcdef")
    assert [(row["row"], row["column"], row["symbol"]) for row in drawn.table][3:] == [
        (1, 0, "d"),
        (1, 1, "e"),
        (1, 2, "f"),
    ]
    assert [row["value"] for row in drawn.table] == [1.0, 2.0, None, 4.0, 5.0, 6.0]
    axis = drawn.figure.axes[0]
    assert [(t.get_text(), t.get_position()) for t in axis.texts][4] == ("e", (1.5, 1.5)) and axis.yaxis_inverted()
    for values, shape, symbols, message in (
        ([], (0, 0), None, "values"),
        ([1.0], (1, 2), None, "shape"),
        ([1.0], (1, 1), "ab", "symbols"),
    ):
        with pytest.raises(ValueError, match=message):
            token_map(np.array(values), shape, symbols)
