"""A GRU on rolling sums: its states beside torch's own GRU, and a bench that changes nothing but the gradient."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from loopgrad.experiments import records
from loopgrad.experiments.benches.reader import RollingSums
from loopgrad.experiments.benches.rolling_sum import NAMES, RollingSum, Training, _cost, _row, train
from loopgrad.gradients import BPTT, TruncatedBPTT

TINY = RollingSum(("sum",), (6,), (8,), hidden_size=5, batch_size=4, learning_rates=(0.01,), window=2, seeds=(0, 1))


def whole(cell, tokens, modulus):
    """All states by torch's own recurrent network."""
    gru = nn.GRU(modulus, cell.gru.hidden_size, batch_first=True)
    gru.load_state_dict({f"{name}_l0": value for name, value in cell.gru.state_dict().items()})
    return gru(F.one_hot(tokens, modulus).float())[0]


def test_the_sum_is_told_from_the_last_state():
    task = RollingSums("sum", length=7, modulus=3)
    model, tokens = task.model(6, seed=0), task.batch(0, 0, 5)
    last = whole(model["cell"], tokens, 3)[:, -1]
    sums = tokens.sum(1).float()
    wanted = (sums - 7) / math.sqrt(7 * 2 / 3)  # mean 1 and variance 2/3 per token of 0, 1, 2
    expected = (model["head"](last)[:, 0] - wanted).square().mean()
    torch.testing.assert_close(task.loss(model, tokens, BPTT())[0], expected)


def test_the_modular_sum_is_told_after_every_token():
    task = RollingSums("modulo", length=7, modulus=3)
    model, tokens = task.model(6, seed=0), task.batch(0, 0, 5)
    logits = model["cell"].head(whole(model["cell"].reader, tokens, 3))
    expected = F.cross_entropy(logits.flatten(0, 1), (tokens.cumsum(1) % 3).flatten())
    torch.testing.assert_close(task.loss(model, tokens, BPTT())[0], expected)


@pytest.mark.parametrize(("target", "ignorance"), [("sum", 1.0), ("modulo", math.log(5))])
def test_knowing_nothing_has_the_loss_that_it_is_said_to_have(target, ignorance):
    task = RollingSums(target, length=20, modulus=5)
    model = task.model(4, seed=0)
    for parameter in (model["head"] if target == "sum" else model["cell"].head).parameters():
        nn.init.zeros_(parameter)
    loss = task.loss(model, task.batch(0, 0, 4096), BPTT())[0]
    assert float(loss.detach()) == pytest.approx(ignorance, rel=0.1)


def test_some_features_of_a_new_gru_forget_slowly_and_some_fast():
    gate = RollingSums("sum", length=1000).model(256, seed=0)["cell"].gru.bias_ih.detach()[256:512]
    kept = torch.sigmoid(gate)  # of a feature, per token
    steps = 1 / (1 - kept)
    assert 1.5 < float(steps.min()) < 50 and 900 < float(steps.max()) < 1001


def test_exact_gradients_train_alike_and_every_estimator_starts_alike():
    curves = {name: train(Training(TINY, "sum", 6, 8, name, 0.01, seed=0)) for name in NAMES}
    assert curves["BPTT"].losses == curves["checkpointed"].losses
    assert len({curve.losses[0] for curve in curves.values()}) == 1
    assert len({curve.losses[-1] for curve in curves.values()}) == 5
    again = train(Training(TINY, "sum", 6, 8, "forward, state", 0.01, seed=0))
    assert again == curves["forward, state"]


@pytest.mark.slow
def test_the_mean_flops_of_random_truncation_are_those_of_its_lengths():
    job = Training(TINY, "sum", 6, 8, "random truncation", 0.01, seed=0)
    curves = [train(job)]
    lengths = curves[0].vjps
    assert len(set(lengths)) > 1 and max(lengths) <= 6
    costs = [_cost(job, TruncatedBPTT(num_steps=k)) for k in lengths]
    row = _row([job], curves)
    assert row["MFLOP"] == pytest.approx(sum(cost.flops for cost in costs) / len(costs) / 1e6, rel=1e-9)
    assert row["peak MiB"] == max(cost.peak_bytes for cost in costs) / 2**20


def test_the_rate_of_each_is_the_one_that_did_best(monkeypatch):
    best = {name: 0.1 if name == "BPTT" else 0.2 for name in NAMES}

    def pretended(job):
        assert job.seed == 2 and job.data_seed == 1  # used by nothing else
        bad = math.nan if job.learning_rate == 0.3 else 1.0
        return train(job).__class__([0.5 if job.learning_rate == best[job.name] else bad], [])

    monkeypatch.setattr("loopgrad.experiments.benches.rolling_sum.train", pretended)
    bench = RollingSum(("sum",), (4,), (2,), learning_rates=(0.3, 0.2, 0.1), seeds=(0, 1), hidden_size=3)
    assert bench._learning_rates([("sum", 4, 2)], 1) == {("sum", name): rate for name, rate in best.items()}


@pytest.mark.slow
def test_the_command_is_the_same_with_two_workers(loopgrad, tmp_path):
    sizes = ["bench.targets=[sum,modulo]", "bench.lengths=[6,5]", "bench.updates=[8,8]", "bench.learning_rates=[0.01]"]
    sizes += ["bench.hidden_size=5", "bench.batch_size=4", "bench.seeds=[0,1]"]
    for workers in (1, 2):
        result = loopgrad("bench", "rolling_sum", *sizes, f"bench.workers={workers}", f"output_dir=out{workers}")
        assert result.code == 0 and "random truncation" in result.out
    names = {path.name for path in (tmp_path / "out2").iterdir()}
    assert names == {f"rolling_sum-figure.{kind}" for kind in ("svg", "png", "json")} | {
        "rolling_sum.json",
        "rolling_sum.html",
    }
    one, two = (records.read(tmp_path / f"out{i}" / "rolling_sum.json")[0] for i in (1, 2))
    assert one["rows"] == two["rows"] and len(one["rows"]) == 12


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bench.targets=[sum,total,sum,modulo]", "target='total' must be one of sum, modulo"),
        ("bench.lengths=[10,20]", "must be as many"),
        ("bench.updates=[0,1,1,1]", "updates=(0, 1, 1, 1) must be at least 1"),
        ("bench.window=1", "window=1 must be at least 2"),
        ("bench.learning_rates=[0.0]", "learning_rates"),
        ("bench.modulus=1", "modulus"),
    ],
)
def test_wrong_sizes_are_named(loopgrad, override, message):
    result = loopgrad("bench", "rolling_sum", override)
    assert result.code == 2 and message in result.err
