"""Optimisers and schedules as configuration: where they stand, and that old configurations are what they were."""

import inspect

import pytest
from omegaconf import OmegaConf

from loopgrad.experiments.conf.build import build
from loopgrad.experiments.conf.overrides import composed
from loopgrad.experiments.conf.own import BUILT, OWN, YOUNG, without_young
from loopgrad.experiments.conf.parts import parts
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.trainer import AdamATan2Rule, Cosine, MuonRule, SignSGDRule, SyntheticGradients

CHOICES = {
    "optimizer=adam_atan2": AdamATan2Rule(),
    "optimizer=muon optimizer.momentum=0": None,
    "optimizer=muon trainer.optimizer.learning_rate=0.02 trainer.optimizer.scale=spectral": MuonRule(
        learning_rate=0.02, scale="spectral"
    ),
    "puzzle_optimizer=sign_sgd trainer.puzzle_optimizer.learning_rate=0.01": SignSGDRule(0.01),
    "schedule=cosine trainer.schedule.min_ratio=0.1": Cosine(0.1),
    "synthetic=hidden trainer.synthetic.hidden_size=9": SyntheticGradients(9),
}


@pytest.mark.parametrize("line", CHOICES)
def test_a_choice_stands_in_the_trainer_and_its_keys_below_it(line):
    if CHOICES[line] is None:
        with pytest.raises(ConfigError, match="trainer.optimizer.momentum"):
            composed("train", line.split())
        return
    node = OmegaConf.to_container(composed("compare", ["trainer=published", *line.split()]).trainer)
    for classes in (None, OWN["trainer"]):  # as typed, and out of a file
        assert CHOICES[line] in vars(build(node, "trainer", classes)).values()


def test_a_configuration_without_a_choice_is_as_it_ever_was():
    """Its plain values are the fingerprint of runs and folders, which go on."""
    node = composed("train", []).trainer
    assert not {"optimizer", "puzzle_optimizer", "schedule", "synthetic"} & set(node)
    assert build(node, "trainer").optimizer is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("puzzle_optimizer=sign_sgd", "trainer.puzzle_optimizer: Sudoku has no puzzle identities"),
        (
            "synthetic=linear",
            "estimator.last_cycle: trainer.synthetic learns from the gradient of the state that segments start from, "
            "which TruncatedBPTT does not give: use estimator=checkpointed",
        ),
        ("synthetic=linear estimator=bptt halting=one", "trainer.synthetic: every sample has one segment"),
        ("synthetic=linear trainer.synthetic.hidden_size=-1", "hidden_size=-1 must be at least 0"),
        ("optimizer=adamm", "did you mean adamw"),
        (
            "optimizer=muon trainer.optimizer.scale=rmss",
            "trainer.optimizer.scale=rmss: no such choice; did you mean rms",
        ),
        ("optimizer=muon trainer.optimizer.momentum=1", r"momentum=1 must be in \[0, 1\)"),
        ("schedule=cosine trainer.schedule.min_ratio=2", r"min_ratio=2 must be in \[0, 1\]"),
        ("trainer.schedule.min_ratio=2", "trainer.schedule.min_ratio"),
        ("optimizer=adamw trainer.optimizer._target_=loopgrad.experiments.trainer.Cosine", "must be UpdateRule"),
    ],
)
def test_what_does_not_go_is_refused_in_one_line(line, words):
    small = ["task.num_train=8", "task.num_test=4", "model.hidden_size=16"]
    with pytest.raises(ConfigError, match=words) as caught:
        parts(composed("train", [*small, *line.split()]))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_young_key_at_its_default_says_nothing_and_another_value_is_told():
    """So that runs and folders from before there was one go on."""
    small = ["task.num_train=8", "task.num_test=4", "model.hidden_size=16"]
    for line, told in (
        ("", set()),
        ("model.forward_dtype=bfloat16", {"forward_dtype"}),
        ("trainer.compile=net", {"compile"}),
        ("task.shared_puzzle=true", {"shared_puzzle"}),
        ("task=arc1 task.max_size=4 task.translate=true task.votes=3", {"translate", "votes"}),
        ("task=arc1 task.max_size=4", set()),
    ):
        own = small[-1:] if "arc1" in line else small
        values = parts(composed("train", [*own, *line.split()])).values
        keys = {key for part in ("task", "model", "trainer") for key in values[part]}
        assert keys & {"forward_dtype", "compile", "shared_puzzle", "translate", "votes"} == told
    for name in ("maze", "arc1"):
        assert "path" not in without_young(dict(composed("train", [f"task={name}"]).task))
        assert without_young(dict(composed("train", [f"task={name}", "task.path=x"]).task))["path"] == "x"
    for kept, keys in ((None, set()), ("int8", {"kept"})):
        own = dict(composed("train", ["estimator=checkpointed"]).estimator.checkpointed) | {"kept": kept}
        assert without_young(own).keys() == {"_target_", "schedule", "num_snapshots", "memory_budget", "offload"} | keys
    assert without_young({"_target_": "mine.Task", "compile": "none"}) == {"_target_": "mine.Task", "compile": "none"}


def test_every_young_key_has_a_default_and_stands_where_it_can_be_set():
    for target, names in YOUNG.items():
        (found,) = {classes[target] for classes in (*OWN.values(), BUILT) if target in classes}
        taken = inspect.signature(found).parameters
        assert all(taken[name].default is not inspect.Parameter.empty for name in names)
