"""Runs of two gloo processes that share the weights: what the tests of `trainer.shard=fsdp2` ask of them, at once."""

import copy
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from ranks_witness import ALONE, SHAREABLE, settings, trained
from small_runs import TASK, model, trainer

from loopgrad.experiments.errors import NonFinite
from loopgrad.experiments.processes import Ranks
from loopgrad.experiments.tasks import Copy, RollingSum, Task
from loopgrad.experiments.trainer import AdamATan2Rule, MuonRule
from loopgrad.experiments.trainer.building import own_part
from loopgrad.experiments.trainer.scaling import overflowed, scaled_step
from loopgrad.experiments.training import parallel
from loopgrad.experiments.training.loop import Run, begin, shard, train
from loopgrad.gradients import BPTT, CheckpointedBPTT, ReversibleBPTT
from loopgrad.models import HRM, LSTM, FixedSegments, LoopedTransformer, Model, NeuralTuringMachine

SHARED = {"shard": "fsdp2"}
RULES = {"atan2": AdamATan2Rule(), "muon": MuonRule()}
COMPILED = {"train_steps": 1}
UNEVEN = RollingSum(length=6, modulus=3, num_test=1)
"""One process has nothing to evaluate."""
COPY = Copy()


def others() -> dict[str, tuple[Task, Model, Any]]:
    """Return further models that are trained, each on its task and under an estimator."""
    puzzle, sequence = TASK.spec, COPY.spec
    sizes = (sequence.vocab_size, sequence.seq_len, 16)
    hrm = {"num_heads": 2, "H_layers": 1, "L_layers": 1, "H_cycles": 2, "L_cycles": 2}
    return {
        "hrm": (TASK, HRM(puzzle.vocab_size, puzzle.seq_len, 16, **hrm), CheckpointedBPTT()),
        "damped": (TASK, model(coupling="damped"), ReversibleBPTT()),
        "uneven": (UNEVEN, model(task=UNEVEN), BPTT()),
        "lstm": (COPY, LSTM(*sizes), BPTT()),
        "ntm": (COPY, NeuralTuringMachine(*sizes), BPTT()),
        "every loop": (COPY, LoopedTransformer(*sizes, num_heads=2), CheckpointedBPTT()),
    }


def few_steps(name: str, ranks: Ranks, **more: Any) -> tuple[Run, list[dict[str, Any]]]:
    """Train one of the further models in float64; return its run and log."""
    task, net, estimator = others()[name]
    it = trainer(**{"halting": FixedSegments(1), "train_steps": 2, "batch_size": 5, "eval_batch_size": 5, **more})
    run = begin(it, task, net.double(), 0)
    run.carry = parallel.own_rows(run.carry, ranks)
    shard(run, it, ranks)
    log = [{k: v for k, v in entry.items() if k != "seconds"} for entry in train(run, it, task, estimator, 0, ranks)]
    return run, log


def with_rule(name: str, ranks: Ranks, **more: Any) -> dict[str, Any]:
    """Train under a rule; Muon in float64, whose roundings to bfloat16 differ with the order of sums."""
    with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.double):
        return trained(settings("fixed", optimizer=RULES[name], **more), ranks)


def bytes_of(run: Run) -> dict[str, int]:
    """Return the bytes that this process holds of weights, average and moments."""
    moments = [value for kept in run.optimizer.state.values() for name, value in kept.items() if name != "step"]
    held = {"weights": run.model.parameters(), "average": run.average.parameters(), "moments": moments}
    return {name: sum(own_part(it).untyped_storage().nbytes() for it in tensors) for name, tensors in held.items()}


def quick(rank: int) -> dict[str, Any]:
    """Do what the fast test asks."""
    return trained(settings("explored", micro_batches=2, train_steps=2, **SHARED), Ranks(rank, 2, rank))


def compiled(rank: int, places: tuple[str, ...]) -> dict[str, Any]:
    """Return what training gives where parts of the model are compiled."""
    shared = {**COMPILED, **SHARED}
    return {place: trained(settings("fixed", compile=place, **shared), Ranks(rank, 2, rank)) for place in places}


def work(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Do what the slow tests ask."""
    found: dict[str, Any] = {name: trained(settings(name, **SHARED), ranks) for name in SHAREABLE}
    found["rules"] = {name: with_rule(name, ranks, **SHARED) for name in RULES}
    found["others"] = {name: few_steps(name, ranks, **SHARED)[1] for name in others()}
    found["bytes"] = bytes_of(few_steps("hrm", ranks, **SHARED)[0])
    for name, before, after in (("begun", SHARED, {}), ("gone on", {}, SHARED)):
        path = folder / f"{name}.pt"
        trained(settings("explored", **before), ranks, path, train_steps=2)
        found[name] = trained(settings("explored", **after), ranks, copy_of(path, ranks))
    found["poisoned"], found["overflow"] = poisoned(ranks), overflow(ranks)
    return found


def copy_of(path: Path, ranks: Ranks) -> Path:
    """Return another file with the content of one, which stays as it is."""
    other = path.with_suffix(".copy.pt")
    if ranks.first:
        other.write_bytes(path.read_bytes())
    ranks.any(False)
    return other


def gone_on_alone(path: Path) -> dict[str, Any]:
    """Go on from a checkpoint in one process."""
    return trained(copy.deepcopy(settings("explored")), ALONE, path)


def poisoned(ranks: Ranks) -> str:
    """Return what is said when a weight of the last process is not finite."""
    it = trainer(train_steps=2, **SHARED)
    run = begin(it, TASK, model(), 0)
    run.carry = parallel.own_rows(run.carry, ranks)
    shard(run, it, ranks)
    if ranks.rank == ranks.size - 1:
        own_part(run.model.lm_head.weight.detach())[-1] = float("nan")
    try:
        list(train(run, it, TASK, BPTT(), 0, ranks))
    except NonFinite as error:
        return str(error)
    return ""


def overflow(ranks: Ranks) -> dict[str, Any]:
    """Return what becomes of a step whose gradient has overflowed in the part of the last process alone."""
    run, _ = few_steps("hrm", ranks, autocast="fp16", **SHARED)
    assert run.scaler is not None
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if ranks.rank == ranks.size - 1:
        own_part(run.model.lm_head.weight.grad)[-1] = float("inf")
    before = [own_part(parameter.detach()).clone() for parameter in run.model.parameters()]
    run.scaler.scale(torch.zeros(()))
    run.scaler.unscale_(run.optimizer)
    told = overflowed(run.scaler, list(run.model.parameters()))
    done = scaled_step(run.scaler, run.optimizer)
    same = all(torch.equal(own_part(p.detach()), b) for p, b in zip(run.model.parameters(), before, strict=True))
    return {"told": told, "done": done, "same": same}
