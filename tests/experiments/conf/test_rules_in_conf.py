"""Optimisers and schedules as configuration: where they stand, and that old configurations are what they were."""

import pytest
from omegaconf import OmegaConf

from loopgrad.experiments.conf.build import build
from loopgrad.experiments.conf.overrides import composed
from loopgrad.experiments.conf.own import OWN
from loopgrad.experiments.conf.parts import parts
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.trainer import AdamATan2Rule, Cosine, MuonRule, SignSGDRule

CHOICES = {
    "optimizer=adam_atan2": AdamATan2Rule(),
    "optimizer=muon optimizer.momentum=0": None,
    "optimizer=muon trainer.optimizer.learning_rate=0.02 trainer.optimizer.scale=spectral": MuonRule(
        learning_rate=0.02, scale="spectral"
    ),
    "puzzle_optimizer=sign_sgd trainer.puzzle_optimizer.learning_rate=0.01": SignSGDRule(0.01),
    "schedule=cosine trainer.schedule.min_ratio=0.1": Cosine(0.1),
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
    assert not {"optimizer", "puzzle_optimizer", "schedule"} & set(node)
    assert build(node, "trainer").optimizer is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("puzzle_optimizer=sign_sgd", "trainer.puzzle_optimizer: Sudoku has no puzzle identities"),
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
