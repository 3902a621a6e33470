"""Depth in training: drawn from the run's seed and the step alone, learnt, and estimators that follow the step."""

import copy
import re
import statistics

import pytest
import torch
from small_runs import TASK, model, trainer

from loopgrad.experiments import records
from loopgrad.experiments.training import checkpoint, depths
from loopgrad.experiments.training.loop import begin, train
from loopgrad.experiments.training.seeds import generators, seed_for, seeded
from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    DepthDistribution,
    Ramp,
    RandomTruncation,
    RandomUpdates,
    TruncatedBPTT,
)
from loopgrad.models import ACT, QHalt, ResidualHalt

DRAWN = {"depths": DepthDistribution(3, "lognormal"), "most_cycles": 8}
SETTINGS = {
    "batch": (DRAWN, RandomTruncation(mean_cycles=2, seed=1)),
    "sample": ({**DRAWN, "depth_per": "sample", "halting": QHalt(3, 0.5)}, TruncatedBPTT(num_cycles=1)),
    "act": ({"halting": ACT(num_segments=2, ponder_weight=0.1)}, BPTT()),
    "residual": ({"halting": ResidualHalt(0.7, 5)}, BPTT()),
    "ramp": ({}, Ramp(TruncatedBPTT(scope=RandomUpdates(0.5, seed=0)), "scope.seed", 0, 3, 5)),
    "backward steps": ({}, Ramp(TruncatedBPTT(1), "num_steps", 1, 5, over=6)),
}


def entries(steps):
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in steps]


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_draws_are_of_the_seed_and_the_step_alone(per):
    it = trainer(**DRAWN, depth_per=per, batch_size=5)
    found = [depths.drawn(it, 3, step) for step in range(40)]
    torch.manual_seed(1)
    again = [depths.drawn(it, 3, step) for step in reversed(range(40))]
    assert list(map(str, found)) == list(map(str, reversed(again)))
    by_hand = torch.Generator().manual_seed(seed_for("depth", 3) + 7)
    count = 5 if per == "sample" else 1
    expected = [min(DRAWN["depths"].sample(by_hand), 8) for _ in range(count)]
    assert (found[7].tolist() if per == "sample" else [found[7]]) == expected
    assert list(map(str, found)) != [str(depths.drawn(it, 4, step)) for step in range(40)]
    every = [n for it in found for n in (it.tolist() if per == "sample" else [it])]
    assert 1 <= min(every) and max(every) <= 8 and 2 < statistics.mean(every) < 4


def test_every_estimator_has_the_same_depths():
    it = trainer(**DRAWN, depth_per="sample", train_steps=3)
    found = []
    for estimator in (BPTT(), TruncatedBPTT(2), RandomTruncation(mean_steps=2, seed=0), CheckpointedBPTT()):
        log = entries(train(begin(it, TASK, model(), 0), it, TASK, estimator, 0))
        found.append([entry["cycles"] for entry in log])
    assert found[0] == found[1] == found[2] == found[3] and len(set(found[0])) > 1
    assert found[0] == [depths.drawn(it, 0, step).double().mean().item() for step in range(3)]


def test_the_depth_of_a_step_is_that_of_its_segment(monkeypatch):
    it, run, seen = trainer(**DRAWN), begin(trainer(**DRAWN), TASK, model(), 0), []
    forward = type(run.model).forward

    def watched(self, *given):
        seen.append(given[4] if len(given) > 4 else None)
        return forward(self, *given)

    monkeypatch.setattr(type(run.model), "forward", watched)
    log = entries(train(run, it, TASK, BPTT(), 0))
    steps = [depth for depth in seen if depth is not None]
    assert steps == [entry["cycles"] for entry in log] and None in seen, "evaluation has the model's own number"
    assert len({entry["saved_bytes"] for entry in log}) > 1


FAST = ("sample", "ramp")


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in SETTINGS])
def test_a_resumed_run_is_the_run_that_was_never_cut(name, tmp_path):
    values, estimator = SETTINGS[name]
    it = trainer(train_steps=7, **values)

    def fresh():
        return begin(it, TASK, model(H_cycles=3), 0), copy.deepcopy(estimator)

    run, noise = fresh()
    whole = entries(train(run, it, TASK, noise, 0))
    cut, noise = fresh()
    steps = train(cut, it, TASK, noise, 0)
    begun = entries(next(steps) for _ in range(4))
    checkpoint.save(tmp_path / "checkpoint.pt", cut, noise, {})
    gone_on, noise = fresh()
    for generator in generators(noise):
        generator.manual_seed(99)
    checkpoint.load(tmp_path / "checkpoint.pt", gone_on, noise, {})
    assert begun + entries(train(gone_on, it, TASK, noise, 0)) == whole
    for mine, theirs in zip(gone_on.model.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_ramp_is_followed_and_its_bytes_are_those_of_the_step():
    it = trainer()
    ramp = Ramp(TruncatedBPTT(1), "num_steps", 1, 4, over=3)
    log = entries(train(begin(it, TASK, model(), 0), it, TASK, ramp, 0))
    for step, entry in enumerate(log):
        alone = entries(train(begin(trainer(train_steps=1), TASK, model(), 0), trainer(train_steps=1), TASK,
                              ramp.at(step), 0))  # fmt: skip
        assert entry["saved_bytes"] == alone[0]["saved_bytes"], step
    assert len({entry["saved_bytes"] for entry in log}) == 4


def test_a_scope_that_draws_has_the_noise_of_the_run():
    found = seeded(TruncatedBPTT(scope=RandomUpdates(0.5)), 4)
    assert found.scope.seed == seed_for("estimator", 4)
    assert generators(found) == [found.scope.generator]
    given = TruncatedBPTT(scope=RandomUpdates(0.5, seed=2))
    assert seeded(given, 4) is given


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["halting=act", "estimator=implicit"],
            "estimator.implicit: trainer.halting: ImplicitGradient has the gradient",
        ),
        (["depths=batch", "halting=act"], "ACT learns the depth within H_cycles"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_begins(refused, tiny, overrides, said):
    message = refused("train", *tiny, *overrides)
    assert re.search(said, message), message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["depths=batch", "model=feed_forward"], "trainer.depths: FeedForward runs one number of updates"),
        (["halting=act", "model=feed_forward"], "trainer.halting: FeedForward runs one number of updates"),
        (
            ["halting=act", "estimator=implicit"],
            "estimator.implicit: trainer.halting: ImplicitGradient has the gradient",
        ),
        (["halting=act", "estimator=phantom"], "estimator.phantom: trainer.halting: PhantomGradient has the gradient"),
        (["halting=act", "estimator=hrm_text"], "estimator.hrm_text: trainer.halting: .*the last state alone"),
        (["estimator=hrm_text", "estimator.hrm_text.parameter=scope.step"], "BackwardSteps takes no 'step'.*steps"),
        (["estimator=hrm_text", "estimator.hrm_text.first=1"], r"BackwardSteps\(steps=1\)"),
        (["estimator=hrm_text", "model.streams=1"], "estimator.hrm_text: .*no update changes a leaf named 'z_H'"),
        (["depths=batch", "trainer.depths.mean=20"], "most_cycles=16 must be at least depths.mean=20"),
        (["depths=batch", "trainer.most_cycles=100000"], "must be at most 10000"),
        (["depths=batch", "trainer.depths.distribution=lognorml"], "lognormal"),
        (["+trainer.depth_per=sample"], "depth_per=sample draws nothing without depths"),
        (["halting=act", "trainer.halting.epsilon=1.5"], r"epsilon=1.5 must be in \(0, 1\)"),
        (["halting=atc"], "did you mean act"),
    ],
)
def test_more_that_cannot_be_trained_is_refused(refused, tiny, overrides, said):
    message = refused("train", *tiny, *overrides)
    assert re.search(said, message), message


@pytest.mark.slow
def test_records_hold_the_depth_of_each_step(loopgrad, tiny, tmp_path):
    result = loopgrad("train", *tiny, "halting=act", "model.H_cycles=3", "estimator=checkpointed", "output_dir=a")
    assert result.code == 0, result.err
    (record,) = records.read(tmp_path / "a" / "records.jsonl", records.RunRecord)
    assert len(record["curve"]["cycles"]) == 4 and all(1 <= n <= 3 for n in record["curve"]["cycles"])
    assert record["gradient_cosine"] == pytest.approx(1, abs=1e-4)
