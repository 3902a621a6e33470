"""float16 with a scaled loss: near float32, gradients of the scale they would have, overflows skipped and counted."""

import copy

import pytest
import torch
from small_runs import TASK, model, trainer

from loopgrad.experiments.errors import ConfigError, NonFinite
from loopgrad.experiments.training import checkpoint
from loopgrad.experiments.training.loop import begin, train
from loopgrad.gradients import BPTT, CheckpointedBPTT, TruncatedBPTT

HALF = trainer(autocast="fp16")
ESTIMATORS = (BPTT(), CheckpointedBPTT(), TruncatedBPTT(num_cycles=1))


def timeless(entries):
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


def run_of(it=HALF, **sizes):
    return begin(it, TASK, model(**sizes), 0)


@pytest.mark.parametrize(
    "estimator", [BPTT(), CheckpointedBPTT(), TruncatedBPTT(num_cycles=1)], ids=lambda e: type(e).__name__
)
def test_steps_are_near_those_of_float32(estimator):
    half, full = (list(train(run_of(it), it, TASK, estimator, 0)) for it in (HALF, trainer()))
    for one, other in zip(half, full, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.02)  # 11 bits, some dozens of roundings
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=0.05)
        assert one["skipped"] == 0 and one["loss_scale"] == 65536.0 and "skipped" not in other


def test_an_overflow_skips_the_step_halves_the_scale_and_leaves_weights_moments_and_average():
    run = run_of()
    steps = train(run, HALF, TASK, BPTT(), 0)
    next(steps)
    before = [t.clone() for t in (*run.model.parameters(), *run.average.parameters())]
    moments = copy.deepcopy(run.optimizer.state_dict()["state"])
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 2.0**120})
    entry = next(steps)
    assert (
        entry["skipped"] == 1
        and "gradient_norm" not in entry
        and entry["loss_scale"] == 2.0**120
        and run.scaler.get_scale() == 2.0**119
    )
    assert all(map(torch.equal, before, (*run.model.parameters(), *run.average.parameters())))
    assert str(moments) == str(run.optimizer.state_dict()["state"])
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 1024.0})
    assert next(steps)["skipped"] == 0
    assert not all(map(torch.equal, before, (*run.model.parameters(), *run.average.parameters())))


def test_what_no_scale_mends_ends_the_run():
    run = run_of()
    with torch.no_grad():
        run.model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(NonFinite, match="lm_head"):
        next(train(run, HALF, TASK, BPTT(), 0))
    run = run_of()
    run.model.lm_head.weight.register_hook(lambda g: g * float("inf"))
    with pytest.raises(NonFinite, match="gradient of lm_head"):
        list(train(run, trainer(autocast="fp16", train_steps=60, eval_every=60), TASK, BPTT(), 0))
    assert 30 < run.step < 50  # from 2^16 to 2^-24


def test_going_on_is_bit_identical_with_the_scale_of_the_checkpoint(tmp_path):
    whole_run, cut = run_of(), run_of()
    for run in (whole_run, cut):
        run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 2.0**121})
    whole = timeless(train(whole_run, HALF, TASK, BPTT(), 0))
    steps = train(cut, HALF, TASK, BPTT(), 0)
    begun = timeless(next(steps) for _ in range(3))
    checkpoint.save(tmp_path / "c.pt", cut, BPTT(), {})
    second = run_of()
    checkpoint.load(tmp_path / "c.pt", second, BPTT(), {})
    assert begun + timeless(train(second, HALF, TASK, BPTT(), 0)) == whole
    content = torch.load(tmp_path / "c.pt", weights_only=True)
    for key, value, words in (
        ("scale", float("inf"), "scaler has scale inf"),
        ("scale", "2", "scaler.scale is a str"),
        ("_growth_tracker", -1, "after -1 steps"),
        ("scale", None, "scaler.scale is missing"),
    ):
        wrong = copy.deepcopy(content)
        wrong["scaler"][key] = value
        if value is None:
            del wrong["scaler"][key]
        torch.save(wrong, tmp_path / "wrong.pt")
        with pytest.raises(ConfigError, match=words):
            checkpoint.load(tmp_path / "wrong.pt", run_of(), BPTT(), {})


def test_activations_of_float16_scale_the_loss_too():
    run = run_of(trainer(), forward_dtype="float16")
    assert run.scaler is not None and run_of(trainer(), forward_dtype="bfloat16").scaler is None
    assert next(train(run, trainer(), TASK, BPTT(), 0))["skipped"] == 0
