"""What is read of trained weights, beside loops by hand over samples, segments and depths."""

import dataclasses

import numpy as np
import pytest
import torch

from loopgrad.analysis import classify, record
from loopgrad.experiments import records
from loopgrad.experiments.claims import Readings, Training, read
from loopgrad.experiments.claims.readings import SETTLE_SAMPLES, answers
from loopgrad.experiments.conf.parts import build_model
from loopgrad.experiments.records import TrainedRecord
from loopgrad.experiments.records.schema import check
from loopgrad.experiments.tasks import RollingSum
from loopgrad.experiments.trainer import Trainer
from loopgrad.experiments.training import probe, tensor_files
from loopgrad.experiments.training.runs import Plan, trained_model
from loopgrad.gradients import BPTT, Ramp, TruncatedBPTT
from loopgrad.models import ACT, FixedSegments, QHalt, QLearning, ResidualHalt, supervision

SIZES = {"hidden_size": 16, "num_heads": 2, "num_layers": 1, "H_cycles": 2, "L_cycles": 1, "mixer": "attention"}
TRM = {"_target_": "loopgrad.models.TRM", **SIZES}
GRU = {"_target_": "loopgrad.models.GRU", "hidden_size": 8}
LOG = [
    {"step": 1, "loss": 2.0, "exact_accuracy": 0.0, "saved_bytes": 5, "seconds": 0.25},
    {"step": 2, "loss": 1.5, "exact_accuracy": 0.0, "saved_bytes": 5, "seconds": 0.5},
    {"step": 3, "loss": 1.0, "exact_accuracy": 0.5, "saved_bytes": 5, "seconds": 1.0},
]
for entry, exact, tokens in ((LOG[1], 0.25, 0.5), (LOG[2], 0.375, 0.625)):
    entry |= {"test_loss": 1.0, "test_exact_accuracy": exact, "test_token_accuracy": tokens}


class Lax(RollingSum):
    """A task whose rule random answers keep about half of the time: the sum of the tokens said is even."""

    def is_solved(self, inputs, predictions):
        return (predictions.sum(1) + inputs.sum(1)) % 2 == 0


TASK = Lax(length=6, modulus=5, num_test=24)


@pytest.fixture
def cheap(monkeypatch):
    """Costs, of which there is a test of its own, are not measured."""
    monkeypatch.setattr(probe, "cost", lambda *_: dict.fromkeys(("saved_bytes", "peak_bytes", "flops"), 1))


def trained(folder, halting, readings, model=TRM, task=TASK, loud=1.0, **settings):
    """A training that has ended: random weights, a q head with an opinion, inputs so many times as loud."""
    settings = {"train_steps": 3, "batch_size": 4, "eval_batch_size": 7, "device": "cpu", **settings}
    estimator = settings.pop("estimator", TruncatedBPTT(num_cycles=1))
    fingerprint = {"model": model}
    plan = Plan("deep-seed0", task, estimator, Trainer(halting=halting, **settings), 0, folder, fingerprint)
    own, draw = build_model(model, task, seed=0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in own.named_parameters():
            if name.startswith("q_head"):
                weight.copy_(torch.randn(weight.shape, generator=draw))
            elif "embedding" in name:
                weight.mul_(loud)
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(tensor_files.weight_bytes(own.state_dict()))
    records.write(folder / "train.jsonl", LOG)
    return Training("deep", plan, readings, ["model=trm"])


def test_a_record_holds_the_log_the_costs_and_what_repeats_it(tmp_path, monkeypatch):
    ramp = Ramp(TruncatedBPTT(num_cycles=1), "num_cycles", 1, 2, over=2)
    training = trained(tmp_path / "run", FixedSegments(2), Readings(), estimator=ramp)
    asked = []

    def cost(probe, estimator):
        asked.append((len(probe.batch), estimator))
        return {"saved_bytes": 7, "peak_bytes": 8, "flops": 9, "cell_evaluations": 1, "vjps": 1}

    monkeypatch.setattr(probe, "cost", cost)
    found = read(training)
    check(found, TrainedRecord)
    assert asked == [(4, TruncatedBPTT(num_cycles=2))]  # a batch as in training, under what ended it
    assert found == {
        "condition": "deep",
        "seed": 0,
        "train_steps": 3,
        "parameters": sum(weight.numel() for weight in trained_model(training.plan).parameters()),
        "readings": {"exact": 0.375, "tokens": 0.625},
        "saved_bytes": 7,
        "peak_bytes": 8,
        "flops": 9,
        "train_seconds": 1.75,
        "curve": {"step": [2, 3], "exact_accuracy": [0.25, 0.375], "token_accuracy": [0.5, 0.625]},
        "overrides": ["model=trm"],
    }


@pytest.mark.parametrize("halting", [FixedSegments(4), ACT(num_segments=2)], ids=["fixed", "act"])
def test_answers_after_so_many_segments_are_those_of_predict(cheap, tmp_path, halting):
    training = trained(tmp_path / "run", halting, Readings(segments=[5, 1, 2, 9]))
    model, test = trained_model(training.plan), TASK.test_set()
    shares, found = set(), read(training)["readings"]
    for count in (1, 2, 5, 9):
        end = supervision.predict(model, test.inputs, test.puzzle_ids, count, halting.depth(None))
        expected = TASK.is_solved(test.inputs, end.logits.argmax(-1)).double().mean().item()
        assert found[f"segments@{count}"] == expected
        shares.add(expected)
    assert len(shares) > 1  # a rule that tells answers apart


def test_answers_are_taken_in_batches_from_the_initial_state_each(cheap, tmp_path):
    training = trained(tmp_path / "run", FixedSegments(2), Readings())
    model, test = trained_model(training.plan), TASK.test_set()
    rows = [rows for rows, _ in answers(model, training.plan.trainer, test, 2)]
    assert [(it.start, it.stop) for it in rows] == [(0, 7), (7, 14), (14, 21), (21, 28)]


RULES = {
    "fixed": (FixedSegments(5), lambda output, before, count: count >= 5),
    "q_halt": (QHalt(6, exploration=0.5), lambda output, before, count: output.q_halt.item() > 0),
    "q_learning": (QLearning(6), lambda output, before, count: output.q_halt.item() > output.q_continue.item()),
    "residual": (ResidualHalt(0.6, max_segments=6), lambda output, before, count: moved(before, output.state) < 0.6),
    "act": (ACT(num_segments=2), lambda output, before, count: count >= 2),
}


def moved(before, after):
    """|z' - z| / |z'| over all streams of one sample."""
    change = sum(float((after[name] - before[name]).double().square().sum()) for name in after)
    return (change / sum(float(it.double().square().sum()) for it in after.values())) ** 0.5


@pytest.mark.parametrize("name", RULES)
def test_samples_halt_where_each_by_itself_does(cheap, tmp_path, name):
    halting, rule = RULES[name]
    training = trained(tmp_path / "run", halting, Readings(halting=True))
    model, test = trained_model(training.plan), TASK.test_set()
    solved, spent = [], []
    with torch.no_grad():
        for row in range(len(test)):
            own = test.inputs[row : row + 1]
            before, state = model.initial_state(1, own.shape[1]), None
            for count in range(1, halting.max_segments + 1):
                depth = halting.depth(None)
                output = model(state, own, None, BPTT(), *(() if depth is None else (depth,)))
                if rule(output, before, count) or count == halting.max_segments:
                    break
                before = state = output.state
            solved.append(bool(TASK.is_solved(own, output.logits.argmax(-1))))
            spent.append(count)
    found = read(training)["readings"]
    assert found["halted"] == sum(solved) / len(solved)
    assert found["halted segments"] == sum(spent) / len(spent)
    if name not in ("fixed", "act"):
        assert len(set(spent)) > 1 and min(spent) < halting.max_segments


def test_other_lengths_are_answered_and_fewer_held_out_where_there_are_not_so_many(cheap, tmp_path):
    training = trained(tmp_path / "run", FixedSegments(1), Readings(lengths=[2, 6, 11]), model=GRU)
    model, found = trained_model(training.plan), read(training)["readings"]
    assert 5**2 // 4 == 6  # of 25 sequences of two, of which 24 cannot be held out
    for length, count in ((2, 6), (6, 24), (11, 24)):
        other = Lax(length=length, modulus=5, num_test=count)
        test = other.test_set()
        assert len(test) == count and test.inputs.shape[1] == length
        with torch.no_grad():
            said = model(None, test.inputs, None, BPTT()).logits.argmax(-1)
        assert found[f"lengths@{length}"] == other.is_solved(test.inputs, said).double().mean().item()


@pytest.mark.parametrize("loud", [10.0, 1.0])
def test_who_has_settled_is_what_the_verdicts_say(cheap, tmp_path, loud):
    training = trained(tmp_path / "run", FixedSegments(4), Readings(settles=[1, 8]), loud=loud)
    model, test, found = trained_model(training.plan), TASK.test_set(), read(training)["readings"]
    assert len(test) <= SETTLE_SAMPLES
    expected = {}
    with torch.no_grad():
        state, x = model.initial_state(len(test), 6), model.encode(test.inputs, None)
        for multiple in (1, 8):
            trace = record(model.cell, state, x, 4 * multiple * model.num_steps, lags=16, reevaluate=torch.float64)
            expected[f"residual@{multiple}"] = float(np.median(trace.joint_relative))
        end = supervision.predict(model, test.inputs, None, 32)
    converged = [label == "converged" for label in classify(trace)["joint"].label]
    solved = TASK.is_solved(test.inputs, end.logits.argmax(-1)).tolist()
    assert any(converged) == (loud > 1) and 0 < sum(solved) < len(solved) and not all(converged)
    of_solved = [it for it, right in zip(converged, solved, strict=True) if right]
    of_others = [it for it, right in zip(converged, solved, strict=True) if not right]
    expected["solved@8"] = sum(of_solved) / len(of_solved)
    expected["unsolved@8"] = sum(of_others) / len(of_others)
    expected["unsettled@8"] = sum(not it for it in of_solved) / len(of_solved)
    # 4 segments of 2 cycles are too few to be judged
    assert found == pytest.approx({"exact": 0.375, "tokens": 0.625, **expected})


def test_where_there_are_too_few_cycles_to_judge_only_the_residual_is_told(cheap, tmp_path):
    training = trained(tmp_path / "run", FixedSegments(1), Readings(settles=[1]))
    assert set(read(training)["readings"]) == {"exact", "tokens", "residual@1"}


def test_reading_leaves_generators_and_stored_weights_alone(cheap, tmp_path):
    training = trained(
        tmp_path / "run", QHalt(4, exploration=1.0), Readings(segments=[1], halting=True, settles=[1], lengths=[6])
    )
    weights = (tmp_path / "run" / "weights.safetensors").read_bytes()
    torch.manual_seed(0)
    first, drawn = read(training), torch.rand(1)
    torch.manual_seed(0)
    again = read(dataclasses.replace(training))
    assert first == again and torch.rand(1) == drawn
    torch.manual_seed(0)
    assert torch.rand(1) == drawn  # nothing was drawn from it
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == weights
