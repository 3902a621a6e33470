"""The trainer against hand-made arithmetic, against the same run cut in two, and against runs of other estimators."""

import math
from dataclasses import replace

import pytest
import torch
from small_runs import TASK, model, trainer

from loopgrad.experiments.conf.build import build
from loopgrad.experiments.conf.overrides import composed
from loopgrad.experiments.errors import NonFinite
from loopgrad.experiments.trainer import Joined, Part
from loopgrad.experiments.training.loop import begin, train
from loopgrad.experiments.training.seeds import USES, seed_for
from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    Estimator,
    ForwardGradient,
    ImplicitGradient,
    RandomTruncation,
    TruncatedBPTT,
)
from loopgrad.models import QHalt, QLearning, supervision


def losses(estimator: Estimator, values=None, seed: int = 0, **sizes):
    it = trainer(**(values or {}))
    run = begin(it, TASK, model(seed_for("weights", seed), **sizes), seed)
    return [entry["loss"] for entry in train(run, it, TASK, estimator, seed)], run


def test_exact_estimators_have_the_same_losses_bit_for_bit():
    # equal bits, not just close: CheckpointedBPTT repeats BPTT's very operations in the same order, on one CPU thread
    reference, run = losses(BPTT())
    assert len(set(reference)) == len(reference)
    for estimator in (CheckpointedBPTT(), CheckpointedBPTT(schedule=1), TruncatedBPTT(num_steps=6)):
        other, its_run = losses(estimator)
        assert other == reference
        assert all(map(torch.equal, run.model.parameters(), its_run.model.parameters()))


def test_a_truncated_gradient_starts_alike_and_then_goes_its_own_way():
    exact, truncated = losses(BPTT())[0], losses(TruncatedBPTT(num_steps=2))[0]
    assert truncated[0] == exact[0]
    assert truncated[2:] != exact[2:]


def test_bytes_of_a_random_length_are_those_of_each_step():
    it = trainer()
    steps = list(train(begin(it, TASK, model(), 0), it, TASK, RandomTruncation(mean_steps=2, seed=0), 0))
    fixed = list(train(begin(it, TASK, model(), 0), it, TASK, BPTT(), 0))
    assert len({entry["saved_bytes"] for entry in steps}) > 1 == len({entry["saved_bytes"] for entry in fixed})


def test_another_seed_has_other_data_and_weights():
    assert losses(BPTT(), seed=1)[0][0] != losses(BPTT(), seed=0)[0][0]
    assert len({seed_for(use, seed) for use in USES for seed in range(20)}) == 20 * len(USES)


class Recorder(type(TASK)):  # pyright: ignore
    asked: list[tuple[int, int]] = []

    def train_batch(self, seed, step, batch_size):
        self.asked.append((seed, step))
        return super().train_batch(seed, step, batch_size)


def test_no_estimator_moves_the_data_and_halting_does_not_either():
    orders, ways = [], [(BPTT(), QHalt(3, 0.5)), (TruncatedBPTT(num_steps=1), QLearning(2, 0.0))]
    for estimator, halting in [*ways, (ForwardGradient(2, seed=0), QHalt(3, 0.5))]:
        task = Recorder(TASK.length, TASK.modulus, TASK.num_test)
        task.asked.clear()
        it = trainer(halting=halting)
        list(train(begin(it, task, model(), 0), it, task, estimator, 0))
        orders.append(list(task.asked))
    seed = seed_for("data", 0)
    assert orders[0] == orders[1] == orders[2] == [(seed, 0), *((seed, step) for step in range(6))]


def test_learning_rate_rises_linearly_from_zero_and_stays():
    it = trainer(warmup_steps=4, learning_rate=0.1)
    rates = [entry["learning_rate"] for entry in train(begin(it, TASK, model(), 0), it, TASK, BPTT(), 0)]
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    it = trainer(warmup_steps=0, learning_rate=0.1)
    assert {e["learning_rate"] for e in train(begin(it, TASK, model(), 0), it, TASK, BPTT(), 0)} == {0.1}


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_the_evaluated_weights_are_the_exponential_average(decay):
    it = trainer(ema_decay=decay)
    run = begin(it, TASK, model(), 0)
    by_hand: dict[str, torch.Tensor] = {}
    for _ in train(run, it, TASK, BPTT(), 0):
        for name, parameter in run.model.named_parameters():
            now = parameter.detach().double()  # the first weights begin the average: no bias towards the initial ones
            by_hand[name] = decay * by_hand[name] + (1 - decay) * now if name in by_hand else now.clone()
    for name, parameter in run.evaluated.named_parameters():
        assert torch.allclose(parameter.double(), by_hand[name], rtol=0, atol=1e-6)
    assert all(map(torch.equal, run.evaluated.buffers(), run.model.buffers()))


def gradient_norm_applied(it):
    """Return the reported norm and that of the gradient which the optimiser saw, with plain SGD in AdamW's place."""
    run = begin(it, TASK, model(), 0)
    run.optimizer = Joined([Part(torch.optim.SGD(run.model.parameters(), it.learning_rate))])
    before = [p.detach().clone() for p in run.model.parameters()]
    (entry,) = train(run, it, TASK, BPTT(), 0)
    moved = [
        (a - b.detach()).double().square().sum().item() for a, b in zip(before, run.model.parameters(), strict=True)
    ]
    return entry["gradient_norm"], math.sqrt(sum(moved)) / entry["learning_rate"]


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_reported():
    free, applied = gradient_norm_applied(trainer(train_steps=1, grad_clip=0.0, learning_rate=1.0, warmup_steps=0))
    assert free == pytest.approx(applied, rel=1e-4)
    reported, applied = gradient_norm_applied(
        trainer(train_steps=1, grad_clip=free / 3, learning_rate=1.0, warmup_steps=0)
    )
    assert reported == pytest.approx(free)
    assert applied == pytest.approx(free / 3, rel=1e-4)
    _, applied = gradient_norm_applied(trainer(train_steps=1, grad_clip=free * 3, learning_rate=1.0, warmup_steps=0))
    assert applied == pytest.approx(free, rel=1e-4)


def test_the_first_step_is_adamw_by_its_formula():
    it = trainer(train_steps=1, warmup_steps=0, learning_rate=0.01, weight_decay=0.5, grad_clip=0.0)
    run = begin(it, TASK, model(), 0)
    twin = model()
    first = TASK.train_batch(seed_for("data", 0), 0, it.batch_size)
    loss = supervision.run_segment(twin, supervision.initial_carry(twin, first), first, BPTT(), it.halting).loss
    loss.backward()
    list(train(run, it, TASK, BPTT(), 0))
    for mine, p in zip(run.model.parameters(), twin.parameters(), strict=True):
        if p.grad is None:
            assert torch.equal(mine, p)
            continue
        step = p.grad / (p.grad.abs() + 1e-8)  # m / (sqrt(v) + eps) of the first step, bias corrected
        assert torch.allclose(mine, p * (1 - 0.01 * 0.5) - 0.01 * step, rtol=0, atol=2e-6)


def test_a_nan_parameter_stops_the_run_at_its_step_by_its_name_and_keeps_the_weights():
    it = trainer()
    run = begin(it, TASK, model(), 0)
    steps = train(run, it, TASK, BPTT(), 0)
    next(steps), next(steps)
    name = "lm_head.weight"
    parameter = run.model.get_parameter(name)
    with torch.no_grad():
        parameter.view(-1)[0] = math.nan
    before = [p.detach().clone() for p in run.model.parameters()]
    with pytest.raises(NonFinite, match=rf"step 3: parameter {name} is not finite; the weights of step 2 are kept"):
        next(steps)
    assert run.step == 2
    assert all(map(torch.equal, map(torch.nan_to_num, before), map(torch.nan_to_num, run.model.parameters())))


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_is_named_alone(clip):
    it = trainer(grad_clip=clip)
    run = begin(it, TASK, model(), 0)
    names = dict(run.model.named_parameters())
    name = [name for name in names if name.startswith("cell")][-1]
    names[name].register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFinite, match=f"step 1: gradient of {name} is not finite"):
        list(train(run, it, TASK, BPTT(), 0))


def test_a_learning_rate_that_blows_up_names_a_tensor():
    it = trainer(learning_rate=1e30, warmup_steps=0, train_steps=20)
    run = begin(it, TASK, model(), 0)
    with pytest.raises(NonFinite, match=r"step \d+: (parameter|new state|logits|q_halt|loss|gradient of) ?\S* is not"):
        list(train(run, it, TASK, BPTT(), 0))


def test_evaluations_fall_on_their_steps_and_on_the_last():
    it = trainer(train_steps=5, eval_every=2)
    entries = list(train(begin(it, TASK, model(), 0), it, TASK, BPTT(), 0))
    assert [e["step"] for e in entries if "test_loss" in e] == [2, 4, 5]
    assert all(math.isfinite(value) for entry in entries for value in entry.values())


def test_bf16_runs_near_the_full_precision_and_not_in_it():
    full, (half, run) = losses(BPTT())[0], losses(BPTT(), {"autocast": "bf16"})
    assert half != full
    assert half[:2] == pytest.approx(full[:2], rel=0.05)  # bfloat16 keeps 8 bits: 0.4 % per rounding
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert losses(CheckpointedBPTT(), {"autocast": "bf16"})[0][0] == half[0]


@pytest.mark.parametrize("rule", [QHalt(3, 0.5), QLearning(3, 0.5)])
def test_halting_rules_train_and_their_exploration_is_seeded(rule):
    values = {"halting": rule, "train_steps": 8}
    first, again = losses(BPTT(), values)[0], losses(BPTT(), values)[0]
    assert first == again and all(map(math.isfinite, first))
    assert losses(CheckpointedBPTT(), values)[0] == first


@pytest.mark.parametrize("rule", ["QHalt", "QLearning"])
def test_a_configuration_can_name_another_halting_rule(rule):
    overrides = [f"trainer.halting._target_=loopgrad.models.{rule}", "~trainer.halting.num_segments"]
    node = composed("train", [*overrides, "+trainer.halting.max_segments=3"]).trainer
    assert type(build(node, "trainer").halting).__name__ == rule


def test_rows_halt_together_under_a_fixed_number_of_segments():
    it = trainer(train_steps=5)
    entries = list(train(begin(it, TASK, model(), 0), it, TASK, BPTT(), 0))
    assert [entry["finished"] for entry in entries] == [0, 4, 0, 4, 0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("train_steps", 0), ("batch_size", 0), ("ema_decay", 1.0), ("beta2", -0.1), ("learning_rate", -1e-3)]
    + [("learning_rate", math.inf), ("grad_clip", math.nan), ("warmup_steps", -1)],
)
def test_values_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        replace(trainer(), **{name: value})


def test_an_implicit_estimator_logs_its_verdicts_and_untrusted_steps_are_the_fallbacks():
    it = trainer()
    entries, runs = {}, {}
    for name, estimator in {"implicit": ImplicitGradient(), "fallback": TruncatedBPTT(num_steps=8)}.items():
        runs[name] = begin(it, TASK, model(), 0)
        entries[name] = list(train(runs[name], it, TASK, estimator, 0))
    assert all(entry["implicit_trusted"] == 0 for entry in entries["implicit"])
    assert [e["loss"] for e in entries["implicit"]] == pytest.approx([e["loss"] for e in entries["fallback"]], rel=1e-6)
    assert {"implicit_forward_residual_median", "implicit_cycle_vjps"} <= entries["implicit"][0].keys()
    assert not any(name.startswith("implicit_") for name in entries["fallback"][0])


@pytest.mark.slow
def test_a_jacobian_weight_makes_the_cycle_contract_and_moves_neither_data_nor_noise():
    penalties, losses = {}, {}
    for weight in (1e-9, 3.0):
        it = trainer(train_steps=30, jacobian_weight=weight)
        log = list(train(begin(it, TASK, model(), 0), it, TASK, BPTT(), 0))
        penalties[weight] = [entry["jacobian_penalty"] for entry in log]
        losses[weight] = log[0]["loss"]
    assert penalties[3.0][0] == penalties[1e-9][0] and losses[3.0] == losses[1e-9]
    assert sum(penalties[3.0][-5:]) < 0.8 * sum(penalties[1e-9][-5:])
    it = trainer()
    assert "jacobian_penalty" not in next(train(begin(it, TASK, model(), 0), it, TASK, BPTT(), 0))
