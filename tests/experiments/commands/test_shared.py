"""What a command that torchrun has started on several processes refuses, before it meets the others."""

import pytest
from omegaconf import OmegaConf

from loopgrad.experiments import cli, endings
from loopgrad.experiments.conf.overrides import composed
from loopgrad.experiments.conf.parts import parts
from loopgrad.experiments.errors import ConfigError

STARTED = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.fixture
def as_one_of_two(monkeypatch):
    for name, value in STARTED.items():
        monkeypatch.setenv(name, value)


def test_several_workers_and_too_few_rows_are_refused_by_name(as_one_of_two, refused, tiny):
    assert refused("compare", *tiny, "workers=2").startswith("workers=2: under torchrun all 2 processes share each run")
    said = refused("train", *tiny, "estimator=bptt", "trainer.batch_size=3", "trainer.micro_batches=2")
    assert said.startswith("trainer.batch_size=3: 2 processes times trainer.micro_batches=2 need a row each, 4")


@pytest.mark.parametrize("command", ["analyse", "bench", "report", "cite"])
def test_commands_of_one_process_are_refused(as_one_of_two, command):
    with pytest.raises(ConfigError, match=f"{command} works in one process, and WORLD_SIZE=2: run it without torchrun"):
        cli._check(command, [])


def test_a_sweep_is_refused(as_one_of_two):
    with pytest.raises(ConfigError, match="start torchrun for each run"):
        cli._check("train", ["-m", "seed=0,1"])


def test_a_world_of_one_is_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    cli._check("report", [])
    assert endings.number_among_several() is None


def test_micro_batches_make_no_other_run(tiny):
    values = [
        parts(composed("train", [*tiny, "estimator=bptt", f"trainer.micro_batches={count}"])).values for count in (1, 4)
    ]
    assert values[0] == values[1]
    assert "micro_batches" not in OmegaConf.to_container(OmegaConf.create(values[0]))["trainer"]  # as in older folders
