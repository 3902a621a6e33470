"""What a command that torchrun has started on several processes refuses, before it meets the others."""

import re

import pytest
import torch
from omegaconf import OmegaConf
from small_runs import model, trainer

from loopgrad.experiments import cli, endings
from loopgrad.experiments.conf.applies import check_sharded
from loopgrad.experiments.conf.overrides import composed
from loopgrad.experiments.conf.parts import parts
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.trainer import SignSGDRule, SyntheticGradients

STARTED = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.fixture
def as_one_of_two(monkeypatch):
    for name, value in STARTED.items():
        monkeypatch.setenv(name, value)


def test_several_workers_and_too_few_rows_are_refused_by_name(as_one_of_two, refused, tiny):
    assert refused("compare", *tiny, "workers=2").startswith("workers=2: under torchrun all 2 processes share each run")
    said = refused("train", *tiny, "estimator=bptt", "trainer.batch_size=3", "trainer.micro_batches=2")
    assert said.startswith("trainer.batch_size=3: 2 processes times trainer.micro_batches=2 need a row each, 4")


@pytest.mark.parametrize("command", ["analyse", "show", "bench", "claims", "report", "cite"])
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


def test_parts_and_shards_make_no_other_run(tiny, as_one_of_two):
    ways = ((), ("trainer.micro_batches=4",), ("trainer.shard=fsdp2",))
    values = [parts(composed("train", [*tiny, "estimator=bptt", *way])).values for way in ways]
    assert values[0] == values[1] == values[2]
    stored = OmegaConf.to_container(OmegaConf.create(values[0]))["trainer"]
    assert not {"micro_batches", "shard"} & stored.keys()  # as in older folders


def tied(net):
    net.lm_head.weight = net.cell.L_net.blocks[0].mlp.gate_up.weight


def with_a_scalar(net):
    net.cell.rate = torch.nn.Parameter(torch.tensor(1.0))


def with_a_half(net):
    net.q_head.to(torch.bfloat16)


UNSHARED = {
    "table": ({"puzzle_optimizer": SignSGDRule()}, None, "trainer.puzzle_optimizer: it learns from the rows that a"),
    "synthetic": ({"synthetic": SyntheticGradients()}, None, "trainer.synthetic: its weights are not the model's"),
    "compiled": ({"compile": "model"}, None, "trainer.compile=model: weights are gathered in the midst of what would"),
    "tied": (
        {},
        tied,
        "trainer.shard=fsdp2: TRM: lm_head.weight is a weight of the cell, too, and fully_shard would make two",
    ),
    "scalar": ({}, with_a_scalar, "trainer.shard=fsdp2: TRM: cell.rate has no dimension to cut: make it a vector of"),
    "dtypes": ({}, with_a_half, "trainer.shard=fsdp2: TRM: fully_shard takes weights of one dtype, these are bfloat16"),
}


@pytest.mark.parametrize("name", UNSHARED)
def test_weights_that_cannot_be_shared_are_refused_by_name(name):
    values, change, said = UNSHARED[name]
    net = model()
    if change is not None:
        change(net)
    check_sharded(trainer(**values), net)  # each process has them all
    with pytest.raises(ConfigError, match=re.escape(said)) as raised:
        check_sharded(trainer(**values, shard="fsdp2"), net)
    assert "\n" not in str(raised.value) and "trainer.shard=none" in str(raised.value)


def test_a_torch_without_fully_shard_is_named(monkeypatch):
    monkeypatch.delattr("torch.distributed.fsdp.fully_shard")
    with pytest.raises(ConfigError, match="no torch.distributed.fsdp.fully_shard: set trainer.shard=none"):
        check_sharded(trainer(shard="fsdp2"), model())


@pytest.mark.parametrize("command", ["train", "compare"])
def test_weights_of_one_process_are_refused_to_be_shared(refused, tiny, command):
    said = refused(command, *tiny, "estimator=bptt", "trainer.shard=fsdp2")
    assert said.startswith("trainer.shard=fsdp2: one process has nobody to share weights with: start several")
