"""The bench of forward gradients: laws known beforehand, and exact gradients that keep within memory or arithmetic."""

import math
from statistics import fmean

import pytest
import torch

from loopgrad.analysis import compare_gradients
from loopgrad.experiments import records
from loopgrad.experiments.benches.forward import Forward
from loopgrad.experiments.benches.forward_points import Problem, Setting, schedules, within_flops, within_peak
from loopgrad.experiments.benches.forward_words import words
from loopgrad.gradients import BPTT, ForwardGradient


@pytest.fixture(scope="module")
def rows():
    alone = {"tangents": (), "features": (), "lengths": (), "batches": ()}
    found = Forward(num_tangents=16, size=4, num_steps=6, batch_size=4, cells=2, draws=32, **alone).rows()
    return {row["gradient"]: row for row in found}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights", "zeroth order"])
def test_perturbed_weights_keep_their_laws(rows, name):
    """C = P - 1 and cos^2 = K / (P + K) with K = 16, P = 64; 64 draws of C have a deviation of about 4 %."""
    row = rows[name]
    assert row["P"] == 64 and row["C"] == pytest.approx(63, rel=0.15)
    assert row["law"] == pytest.approx(math.sqrt(16 / 80)) == pytest.approx(row["cosine"], rel=0.1)
    assert row["forwards"] == pytest.approx(1 + 2 * 16, rel=0.02)


@pytest.mark.slow
def test_the_error_at_the_crossing_is_that_of_truncation(rows):
    for name in ("state", "state, window 1"):
        assert rows[name]["C"] < 63 / 5 and math.isnan(rows[name]["law"])
        assert rows[name]["C"] / rows[name]["K*"] == pytest.approx(rows["truncated, 1"]["rel. MSE"])
    lean, wide = rows["state, window 1, in turn"], rows["state, window 1"]
    assert lean["cosine"] == wide["cosine"] and lean["peak KiB"] < wide["peak KiB"]


@pytest.mark.slow
def test_exact_gradients_are_exact_and_cost_what_they_evaluate(rows):
    # the first of T updates needs no cotangent of its state and inputs: half a forward pass of one update less
    evaluated = {"BPTT": 0, "checkpoints, sqrt": 6, "checkpoints, least": 16}
    for name, more in evaluated.items():
        row = rows[name]
        assert row["cosine"] == pytest.approx(1, abs=1e-9) and row["rel. MSE"] < 1e-9
        assert row["forwards"] == pytest.approx((6 + more + 2 * 6 - 0.5) / 6)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [Setting(32, 8, 9), Setting(16, 8, 6, shared=False)])
def test_the_exact_alternatives_keep_within_the_peak_and_the_flops_of_a_forward_gradient(setting):
    problem = Problem(setting, seed=1)
    exact, tried = problem.gradient(BPTT()), schedules(problem)
    for k, options in ((1, {"perturb": "weights", "window": 0}), (4, {}), (16, {"chunk_size": 1})):
        cost = problem.cost(ForwardGradient(k, seed=0, **options))
        same_peak, same_flops = within_peak(problem, tried, cost.peak_bytes), within_flops(tried, cost.flops)
        assert same_peak and same_flops
        assert problem.cost(same_peak[0]).peak_bytes <= cost.peak_bytes
        assert problem.cost(same_flops[0]).flops <= cost.flops
        for estimator, _ in (same_peak, same_flops):
            found = problem.gradient(estimator)
            assert all(torch.equal(found[name], exact[name]) for name in exact)
    whole = tried[0][1]
    assert within_peak(problem, tried, whole.peak_bytes)[1].flops == whole.flops == min(c.flops for _, c in tried)
    assert within_peak(problem, tried, min(c.peak_bytes for _, c in tried) - 1) is None
    assert within_flops(tried, whole.flops - 1) is None


def test_the_reference_is_the_slope_of_the_loss_in_float64():
    setting, ends = Setting(3, 4, 5), []
    for step in (1e-6, -1e-6):
        moved = Problem(setting, seed=2)
        moved.cell.double().up.data += step * torch.eye(8, 4, dtype=torch.float64)
        ends.append(float(moved.loss(moved.cell, BPTT()).detach()))
    trace = float(Problem(setting, seed=2).exact["up"].diagonal().sum())
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(trace, rel=1e-6)


@pytest.mark.slow
def test_samples_that_agree_lower_the_error_and_others_do_not():
    """Noise averages over samples: a 16th for 16 times as many where gradients agree, as much where they do not."""
    ratios = {}
    for shared in (True, False):
        errors = []
        for batch in (16, 256):
            problems = [Problem(Setting(batch, 8, 8, shared), seed) for seed in range(6)]
            estimators = [ForwardGradient(8, window=0, seed=seed) for seed in range(6)]
            draws = [(p, e) for p, e in zip(problems, estimators, strict=True) for _ in range(4)]
            errors.append(fmean(compare_gradients(p.gradient(e), p.exact).relative_error ** 2 for p, e in draws))
        ratios[shared] = errors[0] / errors[1]
    assert ratios[True] > 5 and 0.3 < ratios[False] < 3


@pytest.mark.slow
def test_the_command_draws_its_figure_and_wrong_sizes_are_refused(loopgrad, tmp_path):
    sweeps = ("bench.tangents=[1]", "bench.features=[3]", "bench.lengths=[4]", "bench.batches=[2]")
    sizes = ("bench.num_tangents=2", "bench.size=3", "bench.num_steps=5", "bench.batch_size=2", "bench.cells=1")
    result = loopgrad("bench", "forward", *sweeps, *sizes, "bench.draws=1", "output_dir=out")
    assert result.code == 0 and "zeroth order" in result.out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["forward-figure.json", "forward-figure.png", "forward-figure.svg", "forward.html", "forward.json"]
    (record,) = records.read(tmp_path / "out" / "forward.json")
    assert [row["K"] for row in record["rows"][:14]] == [1] * 4 + [2] * 5 + [0] * 5
    assert len(record["rows"]) == 14 + 10
    for wrong in ("lengths=[1]", "wider=1", "features=[1]", "tangents=[0]"):
        refused = loopgrad("bench", "forward", f"bench.{wrong}", "output_dir=other")
        assert refused.code == 2 and wrong.split("=")[0] in refused.err


def test_the_text_takes_its_figures_from_the_rows():
    common = {"T": 4, "batch": 2, "forwards": 5.0, "K": 3}
    rows = [
        common | {"P": 10, "gradient": "weights", "cosine": 0.5, "K*": 20.0, "same peak: forwards": math.nan},
        common | {"P": 90, "gradient": "weights", "cosine": 0.1, "K*": 200.0, "same peak: forwards": 4.0},
        common | {"P": 10, "gradient": "state, window 2", "cosine": 0.9, "K*": 1.5, "same peak: forwards": 6.0},
        common | {"P": 90, "gradient": "state, window 2", "cosine": 0.7, "K*": 7.2, "same peak: forwards": 4.0},
        common | {"P": 90, "gradient": "BPTT", "cosine": 1.0, "K*": math.nan, "same peak: forwards": math.nan, "K": 0},
    ]
    said = words(rows, "state, window 2")
    assert "weights: cosine 0.5 (T = 4, 2 samples, P = 10, K = 3), 0.1 (T = 4, 2 samples, P = 90, K = 3)" in said
    assert "from K = 2 (T = 4, 2 samples, P = 10) to K = 8 (T = 4, 2 samples, P = 90) tangents on" in said
    assert "In 1 of 2 rows" in said and "1 rows are below every exact gradient's peak, with cosines up to 0.5." in said
    assert "2506.21833" in said and "Not for whom" in said
