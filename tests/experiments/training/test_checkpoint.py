"""A run cut in two and gone on with is the run that was never cut; what is no checkpoint of it is refused."""

import random
import re

import numpy as np
import pytest
import torch
from small_runs import TASK, model, trainer

from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError, Interrupted, NonFinite
from loopgrad.experiments.training import checkpoint
from loopgrad.experiments.training.loop import begin, train
from loopgrad.experiments.training.runs import Plan, execute, history, trained_model
from loopgrad.experiments.training.seeds import seeded
from loopgrad.gradients import BPTT, ForwardGradient, ImplicitGradient, RandomTruncation
from loopgrad.models import TRM, QHalt, QLearning

TRM_NODE = {"_target_": "loopgrad.models.TRM", "hidden_size": 16, "num_heads": 2, "H_cycles": 2, "L_cycles": 2}


class Dropped(TRM):
    """A TRM with noise from torch's global generator, as dropout draws it."""

    def encode(self, inputs, puzzle_ids=None):
        return torch.nn.functional.dropout(super().encode(inputs, puzzle_ids), 0.2, self.training)


NOISY = {
    "forward_state": ForwardGradient(2),
    "zeroth_order": ForwardGradient(2, "weights", window=0, mode="central"),
    "random_truncation": RandomTruncation(mean_steps=2),
    "fallback": ImplicitGradient(fallback=RandomTruncation(mean_steps=2)),
}


def plan(folder, estimator=None, **values) -> Plan:
    fingerprint = {"model": TRM_NODE, "seed": 0, "trainer": {"beta1": 0.9}}
    return Plan("mine", TASK, estimator or BPTT(), trainer(**values), 0, folder, fingerprint)


def timeless(entries):
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


@pytest.mark.parametrize("halting", [QHalt(3, 0.5), QLearning(3, 0.5)], ids=["QHalt", "QLearning"])
@pytest.mark.parametrize("cut", [1, 4])
def test_going_on_from_a_checkpoint_is_bit_identical(tmp_path, cut, halting):
    it = trainer(halting=halting, train_steps=7)

    def fresh():
        net = Dropped(TASK.spec.vocab_size, TASK.spec.seq_len, hidden_size=16, num_heads=2, num_layers=1, seed=3)
        return begin(it, TASK, net, 0)

    whole_run = fresh()
    whole = timeless(train(whole_run, it, TASK, BPTT(), 0))
    first_run = fresh()
    steps = train(first_run, it, TASK, BPTT(), 0)
    begun = timeless(next(steps) for _ in range(cut))
    checkpoint.save(tmp_path / "c.pt", first_run, BPTT(), {})
    torch.manual_seed(99), random.seed(99), np.random.seed(99)  # what else happens in between must not matter
    second_run = fresh()
    checkpoint.load(tmp_path / "c.pt", second_run, BPTT(), {})
    assert second_run.step == cut
    assert begun + timeless(train(second_run, it, TASK, BPTT(), 0)) == whole
    for one, other in ((whole_run.model, second_run.model), (whole_run.average, second_run.average)):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_every_generator_goes_on_where_it_was(tmp_path):
    def draws():
        return torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist(), float(np.random.randn())

    run = begin(trainer(), TASK, model(), 0)
    np.random.randn()  # leaves a second normal number in numpy's generator
    checkpoint.save(tmp_path / "c.pt", run, BPTT(), {})
    first = draws()
    draws()
    checkpoint.load(tmp_path / "c.pt", run, BPTT(), {})
    assert draws() == first


def test_a_checkpoint_of_another_configuration_is_refused_with_the_key(tmp_path):
    run = begin(trainer(), TASK, model(), 0)
    path = tmp_path / "c.pt"
    checkpoint.save(path, run, BPTT(), {"seed": 0, "trainer": {"beta1": 0.9, "betas": [1, 2]}, "old": None})
    checkpoint.load(
        path, run, BPTT(), {"old": None, "trainer": {"betas": (1, 2), "beta1": 0.9}, "seed": 0}
    )  # order, tuples
    with pytest.raises(ConfigError, match=r"trainer\.beta1: 0\.9 -> 0\.5\): choose another output_dir"):
        checkpoint.load(path, run, BPTT(), {"seed": 0, "trainer": {"beta1": 0.5, "betas": [1, 2]}, "old": None})
    with pytest.raises(ConfigError, match="new: None -> 3"):
        checkpoint.load(
            path, run, BPTT(), {"seed": 0, "trainer": {"beta1": 0.9, "betas": [1, 2]}, "old": None, "new": 3}
        )


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "flipped", "pickle"])
def test_a_damaged_checkpoint_is_refused_with_its_path_in_one_line(tmp_path, damage):
    run = begin(trainer(), TASK, model(), 0)
    path = tmp_path / "c.pt"
    checkpoint.save(path, run, BPTT(), {})
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[:64] = bytes(64)
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"hello"}.get(damage, bytes(content)))
    if damage == "pickle":
        torch.save({"model": 3}, path)
    with pytest.raises(ConfigError, match="c.pt is not a checkpoint that can be read") as caught:
        checkpoint.load(path, run, BPTT(), {})
    assert "\n" not in str(caught.value)


def test_differences_names_every_key_that_differs():
    before = {"a": 1, "b": {"c": 2, "d": [1]}, "gone": 3}
    after = {"a": 1, "b": {"c": 5, "d": [2]}, "new": 4}
    assert records.differences(before, after) == [
        "b.c: 2 -> 5", "b.d: [1] -> [2]", "gone: 3 -> None", "new: None -> 4"
    ]  # fmt: skip


def test_a_run_leaves_its_log_its_checkpoint_and_the_averaged_weights(tmp_path):
    seen = []
    execute(plan(tmp_path / "r"), lambda name, entry: seen.append((name, entry["step"])))
    assert seen == [("mine", step) for step in range(1, 7)]
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [
        "checkpoint.pt", "train.jsonl", "weights.safetensors"
    ]  # fmt: skip
    assert [entry["step"] for entry in history(plan(tmp_path / "r"))] == [1, 2, 3, 4, 5, 6]
    stored = torch.load(tmp_path / "r" / "checkpoint.pt", weights_only=True)["average"]
    for name, tensor in trained_model(plan(tmp_path / "r")).state_dict().items():
        assert torch.equal(tensor, stored[f"module.{name}"])


def test_weights_of_earlier_steps_are_kept_if_asked_for_and_are_those_of_a_shorter_run(tmp_path):
    execute(plan(tmp_path / "whole", weights_every=2, train_steps=5), lambda *_: None)
    execute(plan(tmp_path / "short", train_steps=4), lambda *_: None)
    kept = sorted(path.name for path in (tmp_path / "whole").glob("weights*"))
    assert kept == ["weights-000002.safetensors", "weights-000004.safetensors", "weights.safetensors"]
    whole, short = (tmp_path / name for name in ("whole/weights-000004", "short/weights"))
    assert whole.with_suffix(".safetensors").read_bytes() == short.with_suffix(".safetensors").read_bytes()


def test_a_run_that_is_told_to_end_stores_its_step_and_goes_on(tmp_path):
    execute(plan(tmp_path / "whole"), lambda *_: None)
    steps = []
    with pytest.raises(Interrupted):
        execute(plan(tmp_path / "cut"), lambda _, entry: steps.append(entry["step"]), lambda: steps[-1] == 3)
    assert steps == [1, 2, 3] and not (tmp_path / "cut" / "weights.safetensors").exists()
    execute(plan(tmp_path / "cut"), lambda _, entry: steps.append(entry["step"]))
    assert steps == [1, 2, 3, 3, 4, 5, 6]  # the last step before is shown again, not taken again
    assert timeless(history(plan(tmp_path / "cut"))) == timeless(history(plan(tmp_path / "whole")))
    whole, cut = (tmp_path / name / "weights.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


SLOW_NOISE = ("forward_state", "zeroth_order", "fallback")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW_NOISE else n for n in NOISY])
def test_noise_goes_on_where_it_was_and_evaluations_draw_none(tmp_path, name):
    def run(folder, *ends, seed=0, **values):
        it = plan(tmp_path / folder, seeded(NOISY[name], seed), **values)
        for end in ends:
            with pytest.raises(Interrupted):
                execute(it, lambda _, entry: seen.append(entry["step"]), lambda end=end: seen[-1] == end)
        execute(it, lambda *_: None)
        return timeless(history(it))

    def losses(entries):
        return [entry["loss"] for entry in entries]

    seen: list[int] = []
    whole = run("whole")
    assert run("cut", 1, 2, 5) == whole
    assert losses(run("often", eval_every=1)) == losses(whole)
    other = losses(run("other", seed=1))
    assert other[0] == losses(whole)[0] and other[2:] != losses(whole)[2:], "the noise decides nothing"


def test_a_run_leaves_the_generator_of_its_plan_alone(tmp_path):
    it = plan(tmp_path / "r", RandomTruncation(mean_steps=2))
    before = it.estimator.generator.get_state()
    execute(it, lambda *_: None)
    assert torch.equal(it.estimator.generator.get_state(), before)


def test_a_checkpoint_without_the_noise_of_its_estimator_is_refused_and_serves_where_there_is_none(tmp_path):
    run, path = begin(trainer(), TASK, model(), 0), tmp_path / "c.pt"
    checkpoint.save(path, run, BPTT(), {})
    content = torch.load(path, weights_only=True)
    del content["estimator"]  # as before estimators had noise
    torch.save(content, path)
    checkpoint.load(path, run, BPTT(), {})
    with pytest.raises(ConfigError, match=r"c\.pt holds no state of the estimator's random numbers: delete it"):
        checkpoint.load(path, run, RandomTruncation(mean_steps=2), {})


def test_lines_of_the_log_after_the_checkpoint_are_taken_again(tmp_path):
    def die(_, entry):
        if entry["step"] == 5:  # after its line is written, before a checkpoint is
            raise KeyError("power cut")

    execute(plan(tmp_path / "whole"), lambda *_: None)
    with pytest.raises(KeyError):
        execute(plan(tmp_path / "cut"), die)
    log = tmp_path / "cut" / "train.jsonl"
    log.write_text(log.read_text() + '{"step": 6, "lo')  # a line cut short
    execute(plan(tmp_path / "cut"), lambda *_: None)
    assert timeless(records.read(log)) == timeless(history(plan(tmp_path / "whole")))


def test_a_loss_that_is_not_finite_leaves_the_checkpoint_of_the_step_before_and_names_the_run(tmp_path):
    blown = plan(tmp_path / "r", learning_rate=1e30, warmup_steps=0, train_steps=50, checkpoint_every=50)
    with pytest.raises(NonFinite, match=r"^mine, step \d+: ") as caught:
        execute(blown, lambda *_: None)
    kept = torch.load(tmp_path / "r" / "checkpoint.pt", weights_only=True)
    assert kept["step"] == len(records.read(tmp_path / "r" / "train.jsonl")) >= 1
    with pytest.raises(NonFinite, match=re.escape(str(caught.value))):
        execute(blown, lambda *_: None)


@pytest.mark.parametrize(
    "spoil", [lambda lines: lines + lines[-1:], lambda lines: lines[1:], lambda lines: lines[::-1]]
)
def test_a_log_that_is_not_each_step_once_makes_no_record(tmp_path, spoil):
    it = plan(tmp_path / "r")
    execute(it, lambda *_: None)
    log = tmp_path / "r" / "train.jsonl"
    log.write_text("".join(spoil(log.read_text().splitlines(keepends=True))))
    with pytest.raises(ConfigError, match=r"train\.jsonl does not hold each of 6 steps once and in order.*: remove"):
        history(it)
