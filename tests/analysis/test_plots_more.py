"""Figures of costs, gradients and orbits against brute force and linear algebra, and the files that hold them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from validity_cases import compared

from loopgrad.analysis.plots import (
    Point,
    Progress,
    Trade,
    eigenvalue_cloud,
    memory,
    over_training,
    pareto,
    recurrence,
    save,
    trajectories,
    validity,
)


def rows_of(drawn, **having):
    return [row for row in drawn.table if all(row[key] == value for key, value in having.items())]


def test_the_implicit_gradient_is_valid_where_the_residual_is_small_and_the_one_step_gradient_nowhere():
    points, radii = [], []
    for gain, num_steps in ((0.5, 64), (0.85, 512), (1.5, 16), (3.0, 16)):
        radius, residual, implicit, one_step, _ = compared(gain, num_steps, 0)
        points += [Point("implicit", residual, radius, *implicit), Point("one-step", residual, radius, *one_step)]
        radii.append(radius)
    assert radii == sorted(radii) and radii[1] < 1 < radii[2]
    drawn = validity(points)
    arrived = [row for row in rows_of(drawn, estimator="implicit") if row["residual"] < 1e-6]
    assert len(arrived) == 2 and all(row["cosine"] > 0.99 for row in arrived)
    assert all(row["cosine"] < 0.95 for row in rows_of(drawn, estimator="one-step"))
    left, right, *_ = drawn.figure.axes
    for axis, key in ((left, "cosine"), (right, "relative_error")):
        marks = np.concatenate([found.get_offsets() for found in axis.collections])
        table = rows_of(drawn, estimator="implicit") + rows_of(drawn, estimator="one-step")
        assert marks.tolist() == [[row["residual"], row[key]] for row in table]


def test_points_without_radius_are_grey_and_not_finite_ones_only_in_the_table():
    points = [
        Point("a", 1e-3, None, 0.5, 0.1),
        Point("a", 0.0, 0.5, 1.0, 0.0),
        Point("b", np.nan, np.nan, 1.0, 1.0),
        Point("b", 1e-3, 2.0, 0.1, 1.0, "run"),
    ]
    drawn = validity(points)
    assert drawn.table[2]["residual"] is None is drawn.table[2]["radius"] and drawn.table[3]["group"] == "run"
    first = drawn.figure.axes[0].collections[0]
    assert first.get_offsets().tolist() == [[1e-3, 0.5], [1e-4, 1.0]]
    grey, coloured = first.get_facecolors()
    assert np.ptp(grey[:3]) == 0 < np.ptp(coloured[:3])
    with pytest.raises(ValueError, match="points is empty"):
        validity([])


def test_memory_is_drawn_in_mib():
    drawn = memory({"a": {16: 2**24, 4: 2**22}, "b": {4: 0}}, {"a": {4: 2**22, 64: 2**26}})
    assert [row["mib"] for row in rows_of(drawn, estimator="a")] == [4.0, 16.0, 4.0, 64.0]
    lines = {line.get_label(): line for line in drawn.figure.axes[0].get_lines()}
    assert (list(lines["a"].get_xdata()), list(lines["a"].get_ydata())) == ([4, 16], [4.0, 16.0])
    assert lines["b"].get_ydata().tolist() == [0.4] and rows_of(drawn, estimator="b")[0]["bytes"] == 0
    for measured in ({}, {"a": {}}, {"a": {0: 1}}, {"a": {1: -1}}):
        with pytest.raises(ValueError, match="measured"):
            memory(measured, {})


def test_the_line_joins_those_that_no_other_beats():
    rng = np.random.default_rng(0)
    trades = [Trade(str(i), int(b), 10 * a, 0, 100) for i, (b, a) in enumerate(rng.integers(1, 9, (30, 2)))]
    drawn = pareto(trades)
    for trade, row in zip(trades, drawn.table, strict=True):
        beaten = [
            other
            for other in trades
            if other.bytes <= trade.bytes
            and other.accuracy >= trade.accuracy
            and (other.bytes, other.accuracy) != (trade.bytes, trade.accuracy)
        ]
        assert row["dominated"] == bool(beaten)
    line = next(line for line in drawn.figure.axes[0].get_lines() if line.get_label() == "not dominated")
    best = sorted((row["mib"], row["accuracy"]) for row in rows_of(drawn, dominated=False))
    np.testing.assert_allclose(sorted(map(tuple, line.get_xydata())), best, rtol=1e-12)
    assert list(line.get_ydata()) == sorted(line.get_ydata())
    for wrong in ([], [Trade("a", 1, 87, 88, 90)], [Trade("a", 1, 90, 80, 101)], [Trade("a", -1, 5, 5, 5)]):
        with pytest.raises(ValueError, match="rows"):
            pareto(wrong)


def test_trajectories_are_projections_on_the_eigenvectors_of_the_covariance():
    rng = np.random.default_rng(0)
    states = rng.standard_normal((20, 5, 4)).cumsum(axis=0) * [4.0, 2.0, 1.0, 0.5]
    labels = np.array(["drift", "drift", "orbit", "drift", "cycle"])
    fixed = rng.standard_normal((2, 4))
    drawn = trajectories(states, labels, fixed, most=2)
    lengths = np.linalg.norm(np.diff(states, axis=0), axis=2).sum(axis=0)
    typical = sorted([0, 1, 3], key=lambda i: lengths[i])[1]
    chosen = {row["label"]: row["index"] for row in rows_of(drawn, mark="state")}
    assert chosen == {"drift": typical, "cycle": 4}

    points = np.concatenate([states[:, typical], states[:, 4]])
    values, vectors = np.linalg.eigh(np.cov(points.T))
    expected = (np.concatenate([points, fixed]) - points.mean(axis=0)) @ vectors[:, ::-1][:, :2]
    found = np.array([[row["pc1"], row["pc2"]] for row in drawn.table[:-2]])
    for k in range(2):
        sign = np.sign(found[0, k] * expected[0, k])
        np.testing.assert_allclose(found[:, k], sign * expected[:, k], rtol=1e-9, atol=1e-9)
    shares = [row["variance"] for row in rows_of(drawn, mark="axis")]
    assert shares == pytest.approx((values[::-1] / values.sum())[:2])
    paths = [line for line in drawn.figure.axes[0].get_lines() if len(line.get_xdata()) == 20]
    assert np.concatenate([line.get_xdata() for line in paths]).tolist() == found[:40, 0].tolist()
    assert f"{100 * shares[0]:.0f} %" in drawn.figure.axes[0].get_xlabel()


def test_a_path_ends_before_it_is_not_finite_and_one_feature_is_enough():
    states = np.ones((4, 1, 1)).cumsum(axis=0)
    states[2:] = np.inf
    assert len(rows_of(trajectories(states, np.array(["diverging"])), mark="state")) == 2
    for given, message in (
        ((np.ones((0, 1, 1)), ["drift"]), "states"),
        ((np.ones((2, 1, 1)), ["drift"] * 2), "labels"),
        ((np.ones((2, 1, 1)), ["settled"]), "'settled' is not a verdict"),
        ((np.ones((2, 1, 1)), ["drift"], np.ones((1, 2))), "fixed_points"),
        ((np.ones((2, 1, 1)), ["drift"], None, 0), "most"),
    ):
        with pytest.raises(ValueError, match=message):
            trajectories(*given)


@pytest.mark.parametrize("decay", [1.0, 0.8])
def test_recurrences_are_distances_over_the_largest_norm(decay):
    turn = np.arange(30)[:, None]
    states = decay**turn * np.hstack([np.cos(2 * np.pi * turn / 5), np.sin(2 * np.pi * turn / 5)])
    drawn = recurrence(states)
    assert len(drawn.table) == 30 * 29 / 2
    for row in drawn.table:
        expected = np.linalg.norm(states[row["i"]] - states[row["j"]])
        assert row["distance"] == pytest.approx(expected, abs=1e-15)
        if decay == 1 and (row["j"] - row["i"]) % 5 == 0:
            assert row["distance"] < 1e-13
    broken = np.vstack([states, np.full((1, 2), np.nan), states])
    assert recurrence(broken).table == drawn.table
    for wrong in (np.ones((0, 2)), np.ones((1, 2)), np.full((3, 1), np.nan), np.ones(3)):
        with pytest.raises(ValueError, match="states"):
            recurrence(wrong)


def test_the_cloud_holds_every_eigenvalue_and_the_bars_count_every_exponent():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((12, 3)) + 1j * rng.standard_normal((12, 3))
    solved, exponents = np.arange(12) < 5, rng.standard_normal(12)
    exponents[0] = np.nan
    drawn = eigenvalue_cloud(values, solved, exponents, values[:2] / 2)
    for name, chosen in (("solved n=5", values[solved]), ("unsolved n=7", values[~solved])):
        rows = rows_of(drawn, mark="eigenvalue", group=name)
        assert [complex(row["real"], row["imag"]) for row in rows] == chosen.ravel().tolist()
    assert len(rows_of(drawn, mark="fixed point")) == 6
    bars = rows_of(drawn, mark="bar")
    assert sum(bar["count"] for bar in bars) == 11
    for bar in bars[:-1]:
        mine = exponents[solved if bar["group"] == "solved n=5" else ~solved]
        last = bar["high"] == max(b["high"] for b in bars)
        assert bar["count"] == ((mine >= bar["low"]) & ((mine < bar["high"]) | (last & (mine == bar["high"])))).sum()
    marks = drawn.figure.axes[0].collections[0].get_offsets()
    assert (marks[:, 0] + 1j * marks[:, 1]).tolist() == values[solved].ravel().tolist()
    assert len(eigenvalue_cloud(values).figure.axes) == 1
    for given, message in (
        ((np.ones((0, 2)),), "eigenvalues"),
        ((values, solved[:3]), "solved"),
        ((values, None, exponents[:3]), "exponents"),
        ((values, None, None, values[0]), "at_fixed_point"),
    ):
        with pytest.raises(ValueError, match=message):
            eigenvalue_cloud(*given)


def test_progress_is_mean_least_and_greatest_of_the_seeds():
    rows = [Progress("a", step, r * step, None if step == 1 else r) for step in (2, 1) for r in (0.1, 0.2, 0.6)]
    drawn = over_training([*rows, Progress("b", 1, float("nan"), None)])
    found = [(row["step"], row["quantity"], row["mean"], row["low"], row["high"]) for row in drawn.table]
    assert found[0] == (1, "residual", pytest.approx(0.3), 0.1, 0.6)
    assert found[1] == (2, "residual", pytest.approx(0.6), 0.2, 1.2)
    assert found[2] == (2, "radius", pytest.approx(0.3), 0.1, 0.6) and len(found) == 3
    line = drawn.figure.axes[0].get_lines()[0]
    assert line.get_ydata().tolist() == [found[0][2], found[1][2]]
    assert len(over_training([row._replace(radius=None) for row in rows]).figure.axes) == 1
    with pytest.raises(ValueError, match="rows is empty"):
        over_training([])


@pytest.mark.slow
def test_saved_files_are_the_same_byte_by_byte_and_the_text_is_text(tmp_path):
    def drawn():
        return pareto([Trade("bptt", 2**30, 80, 70, 90), Trade("implicit", 2**20, 50, 40, 60)])

    once = drawn()
    for name, figure in (("a", once), ("b", once), ("c", drawn())):
        paths = save(figure, tmp_path / f"{name}.v1", ("svg", "png", "pdf"))
        assert [path.name for path in paths] == [f"{name}.v1.{end}" for end in ("svg", "png", "pdf", "json")]
    for end in ("svg", "png", "pdf", "json"):
        a, b, c = ((tmp_path / f"{name}.v1.{end}").read_bytes() for name in "abc")
        assert a == b == c
    text = (tmp_path / "a.v1.svg").read_text()
    assert ">memory (MiB)</text>" in text and "<dc:date>" not in text
    assert json.loads((tmp_path / "a.v1.json").read_text()) == once.table
    assert len(os.listdir(tmp_path)) == 12


def test_a_save_that_fails_leaves_the_old_files(tmp_path, monkeypatch):
    drawn = pareto([Trade("bptt", 2**30, 80, 70, 90)])
    old = {path: path.read_bytes() for path in save(drawn, tmp_path / "figure")}
    other = pareto([Trade("implicit", 2**20, 50, 40, 60)])
    with pytest.raises(ValueError, match="nothing"):
        save(other, tmp_path / "figure", ("svg", "nothing"))

    def full(*paths):
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(os, "replace", full)
        save(other, tmp_path / "figure")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_drawing_keeps_the_users_settings():
    import matplotlib

    with matplotlib.rc_context({"font.size": 20, "axes.spines.top": True}):
        before = dict(matplotlib.rcParams)
        drawn = pareto([Trade("bptt", 2**30, 80, 70, 90)])
        assert dict(matplotlib.rcParams) == before
    axis = drawn.figure.axes[0]
    assert axis.xaxis.label.get_size() == 8 and not axis.spines["top"].get_visible()
    assert drawn.figure.get_figwidth() == 3.4


@pytest.mark.slow
def test_matplotlib_is_loaded_by_drawing_only_and_its_lack_names_the_extra():
    code = """
import sys
from loopgrad.analysis.plots import Trade, pareto
assert not any(name.split(".")[0] == "matplotlib" for name in sys.modules)
sys.modules["matplotlib"] = None
try:
    pareto([Trade("bptt", 2**30, 80, 70, 90)])
except ImportError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'loopgrad[plots]'" in ran.stdout, ran.stderr
