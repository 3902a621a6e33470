"""What a model cannot be trained with is refused by name, with what to do, before anything is written."""

import pytest
from sequence_models import MODELS

from loopgrad.experiments.conf.applies import check_estimators, check_training
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.tasks import Copy
from loopgrad.experiments.trainer import Trainer
from loopgrad.gradients import BPTT, ImplicitGradient, PhantomGradient, ReversibleBPTT, TruncatedBPTT
from loopgrad.gradients.scopes import EveryCycle
from loopgrad.models import GRU, TRM, FixedSegments, LoopedTransformer, QHalt

TASK = Copy(length=3, num_values=2, num_test=2)
SIZES = (TASK.spec.vocab_size, TASK.spec.seq_len, 8)
OF_LAST = {
    "ImplicitGradient has": ImplicitGradient(),
    "PhantomGradient has": PhantomGradient(num_steps=2),
    "TruncatedBPTT(scope=...) has": TruncatedBPTT(scope=EveryCycle(2)),
}
WORDS = {
    "gru": "the loss of GRU is that of every token: leave it out, or use checkpointed, truncated or random_truncation",
    "lstm": "the loss of LSTM is that of every token: leave it out",
    "ntm": "the loss of NeuralTuringMachine is that of every token: leave it out",
    "looped": "the loss of LoopedTransformer is that of every loop: set model.loss=last_loop, leave it out",
}


def refusal(check, *arguments, **more) -> str:
    with pytest.raises(ConfigError) as caught:
        check(*arguments, **more)
    return str(caught.value)


@pytest.mark.parametrize("name", MODELS)
def test_an_estimator_of_the_last_state_is_refused_where_every_state_has_a_loss(name):
    model = MODELS[name]()
    for words, estimator in OF_LAST.items():
        said = refusal(check_estimators, {"fine": BPTT(), "mine": estimator}, model)
        assert (
            said.startswith(f"estimator.mine: {words} the gradient of the last state alone")
            and WORDS[name.partition(",")[0]] in said
        )
    check_estimators({"a": BPTT(), "b": TruncatedBPTT(num_steps=2)}, model)


def test_a_trained_model_is_not_told_to_be_another():
    said = refusal(check_estimators, {"mine": ImplicitGradient()}, MODELS["looped"](), trained=True)
    assert said.endswith("is that of every loop: name others, such as estimator=[one_step,last_cycle]")


def test_they_are_taken_where_the_loss_is_that_of_the_last_state():
    check_estimators(OF_LAST, MODELS["looped"](loss="last_loop"))
    check_estimators(OF_LAST, TRM(*SIZES, num_heads=1))


def test_reversible_asks_for_a_coupling_where_there_is_one():
    reversible = {"mine": ReversibleBPTT()}
    assert "add model.coupling=damped, leapfrog or momentum" in refusal(check_estimators, reversible, MODELS["gru"]())
    said = refusal(check_estimators, reversible, MODELS["ntm"](), couples=False)
    assert "NeuralTuringMachine has no coupling, so use estimator=checkpointed" in said
    check_estimators(reversible, MODELS["gru"](coupling="damped"))


@pytest.mark.parametrize("halting", [FixedSegments(2), FixedSegments(1, halt_loss=True), QHalt(1)], ids=repr)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_a_halting_head_has_one_segment(name, halting):
    said = refusal(check_training, Trainer(halting), TASK, MODELS[name]())
    assert said.startswith(f"trainer.halting={halting}: ") and "use trainer=sequences" in said
    check_training(Trainer(FixedSegments(1)), TASK, MODELS[name]())


def test_a_jacobian_weight_is_refused_where_tokens_differ():
    trainer = Trainer(FixedSegments(1), jacobian_weight=0.1)
    said = refusal(check_training, trainer, TASK, MODELS["lstm"]())
    assert said.startswith("trainer.jacobian_weight=0.1: each update of LSTM reads another token")
    check_training(trainer, TASK, MODELS["looped"]())


class Ahead(Copy):
    asks_ahead = True


def test_a_model_that_looks_ahead_is_refused_where_answers_are_later_inputs():
    trainer, task = Trainer(FixedSegments(1)), Ahead(length=3, num_values=2)
    said = refusal(check_training, trainer, task, TRM(*SIZES, num_heads=1))
    assert "TRM reads the whole input at once, and the answers of Ahead are later inputs" in said
    check_training(trainer, task, GRU(*SIZES))
    check_training(trainer, task, LoopedTransformer(*SIZES, num_heads=1))
    check_training(trainer, TASK, TRM(*SIZES, num_heads=1))


@pytest.mark.parametrize("estimator", ["forward_state", "forward_weights"])
def test_forward_mode_through_a_coupling_is_refused_before_anything_is_written(refused, estimator):
    small = ("task=copy", "task.length=3", "task.num_test=8", "model=gru", "model.hidden_size=8", "trainer=sequences")
    said = refused("train", *small, "model.coupling=damped", f"estimator={estimator}")
    assert said.startswith(f"estimator.{estimator}: the arithmetic of model.coupling has no rule of forward mode")


def test_a_command_refuses_before_it_writes(refused):
    small = ("task=copy", "task.length=3", "model=gru", "model.hidden_size=8")
    said = refused("compare", *small, "trainer=sequences", "estimator=[bptt,implicit]")
    assert said.startswith("estimator.implicit: ImplicitGradient has") and WORDS["gru"] in said
    assert "GRU has no halting head" in refused("train", *small, "estimator=bptt")
