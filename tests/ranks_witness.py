"""Runs of several gloo processes, begun once for many settings: what each of them measured and stored, beside one's."""

import copy
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small_runs import TASK, model, trainer
from torch import multiprocessing

from loopgrad.experiments.errors import NonFinite
from loopgrad.experiments.processes import ALONE, Ranks
from loopgrad.experiments.trainer import SyntheticGradients
from loopgrad.experiments.trainer.building import whole
from loopgrad.experiments.training import checkpoint, parallel
from loopgrad.experiments.training.loop import begin, shard, train
from loopgrad.experiments.training.seeds import seeded
from loopgrad.gradients import BPTT, CheckpointedBPTT, DepthDistribution, ImplicitGradient, TruncatedBPTT
from loopgrad.models import ACT, FixedSegments, QHalt, QLearning, ResidualHalt

BOUND = 100
DRAWN = {"depths": DepthDistribution(2, "lognormal"), "most_cycles": 4}
STEPS = {"train_steps": 5, "batch_size": 8, "eval_every": 2, "learning_rate": 1e-2}
SETTINGS = {
    "fixed": ({"halting": FixedSegments(2)}, BPTT()),
    "explored": ({"halting": QHalt(3, 0.5)}, CheckpointedBPTT()),
    "q_learning": ({"halting": QLearning(2, 0.5)}, TruncatedBPTT(num_cycles=1)),
    "depth_of_samples": ({**DRAWN, "depth_per": "sample", "halting": QHalt(3, 0.5)}, BPTT()),
    "depth_of_batch": ({**DRAWN, "depth_per": "batch"}, BPTT()),
    "act": ({"halting": ACT(num_segments=2, ponder_weight=0.1)}, BPTT()),
    "residual": ({"halting": ResidualHalt(0.7, 5)}, BPTT()),
    "penalty": ({"jacobian_weight": 0.1}, TruncatedBPTT(num_cycles=1)),
    "softmax_unclipped": ({"cross_entropy": "softmax", "grad_clip": 0.0}, BPTT()),
    "synthetic": ({"halting": FixedSegments(3), "synthetic": SyntheticGradients(5, 0.01)}, BPTT()),
    "verdicts": ({}, ImplicitGradient(max_vjps=6, check_every=None)),
}
SHAREABLE = [name for name in SETTINGS if name != "synthetic"]  # of which weights can be cut


SINGLE = ("token_accuracy", "exact_accuracy", "ponder", "implicit_trusted")  # means in float32
LARGEST_OF_PARTS = ("implicit_cycle_vjps", "saved_bytes")  # each part takes its own


def assert_same(found: dict, expected: dict, tolerance: float = 1e-9) -> None:
    assert len(found["log"]) == len(expected["log"])
    for step, (entry, its) in enumerate(zip(found["log"], expected["log"], strict=True)):
        assert entry.keys() == its.keys()
        for name in entry.keys() - set(LARGEST_OF_PARTS):
            allowed = max(tolerance, 1e-6 if name in SINGLE else 0)
            assert entry[name] == pytest.approx(its[name], rel=allowed, abs=allowed, nan_ok=True), (step, name)
    for part in ("weights", "carry"):
        for name, value in found[part].items():
            assert torch.allclose(value.double(), expected[part][name].double(), rtol=tolerance, atol=tolerance), name


def tolerance_of(name: str) -> float:
    """What is rounded to float32 on the way: the q head's answers, in the loss of some rules."""
    return 1e-5 if isinstance(SETTINGS[name][0].get("halting"), QHalt | ACT) else 1e-9


def settings(name: str, **more) -> dict:
    values, estimator = SETTINGS[name]
    return {"trainer": {**STEPS, **values, **more}, "estimator": copy.deepcopy(estimator)}


def trained(settings: dict[str, Any], ranks: Ranks, path: Path | None = None, **more: Any) -> dict[str, Any]:
    """Train a model in float64; return what was logged, the weights and the carry of the whole batch.

    With a path, train to the end of the steps in `more` and store a checkpoint, or go on from the one that is there.
    """
    it = trainer(**{**settings["trainer"], **more})
    estimator = seeded(settings["estimator"], 0)
    net = model().double()
    with torch.no_grad():  # so that rows want to halt, and exploration decides when
        net.q_head.bias.copy_(torch.tensor([1.0, 0.0]))
    run = begin(it, TASK, net, 0)
    if path is not None and path.exists():
        checkpoint.load(path, run, estimator, {})
    checkpoint.share(run, estimator, ranks)
    run.carry = parallel.own_rows(run.carry, ranks)
    shard(run, it, ranks)
    log = [{k: v for k, v in entry.items() if k != "seconds"} for entry in train(run, it, TASK, estimator, 0, ranks)]
    run.carry = parallel.whole(run.carry, ranks)
    if path is not None:
        checkpoint.save(path, run, estimator, {}, ranks)
    ranks.any(False)  # the file is there before anyone looks for it
    return {
        "log": log,
        "weights": {name: whole(value).detach().clone() for name, value in run.model.state_dict().items()},
        "carry": {name: value.clone() for name, value in run.carry.tensors().items()},
    }


def in_processes(size: int, work: Callable[[Ranks, Path], dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Return what each of `size` processes makes of work(ranks, folder); none goes on beyond the bound."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=_one, args=(rank, size, port, work, folder)) for rank in range(size)]
    for process in started:
        process.start()
    for process in started:
        process.join(BOUND)
    late = [process for process in started if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    assert not late, "a rank hangs"
    assert [process.exitcode for process in started] == [0] * size
    return [torch.load(folder / f"{size}-{rank}.pt", weights_only=False) for rank in range(size)]


def _one(rank: int, size: int, port: int, work: Callable[[Ranks, Path], dict[str, Any]], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=60))
    try:
        torch.save(work(Ranks(rank, size, rank), folder), folder / f"{size}-{rank}.pt")
    finally:
        dist.destroy_process_group()


def work(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Do all that the tests ask of a number of processes."""
    found: dict[str, Any] = {name: trained(settings(name), ranks) for name in SETTINGS}
    path = folder / "checkpoint.pt"
    if ranks.size == 2:
        found["micro"] = trained(settings("explored", micro_batches=2), ranks)
        trained(settings("explored"), ranks, path, train_steps=2)
    else:
        trained(settings("explored"), ranks, path, train_steps=3)
        found["resumed"] = trained(settings("explored"), ALONE, path) if ranks.first else {}
        found["resumed"] = ranks.told(found["resumed"])
    found |= {"gradients": _gradients(ranks), "poisoned": poisoned(ranks)}
    parallel.reseed(ranks, 0, 0)
    found["dropout"] = torch.rand(()).item()
    found["exploration"] = begin(trainer(halting=QHalt(3, 0.5)), TASK, model(), 0).exploration.initial_seed()
    return found


def _gradients(ranks: Ranks) -> dict[str, torch.Tensor | None]:
    """Return the sums of gradients that not every rank has."""
    it = torch.nn.ParameterDict({name: torch.ones(3) for name in ("everywhere", "nowhere")})
    it["of the last"] = torch.ones(2)
    it["everywhere"].grad = torch.full((3,), ranks.rank + 1.0)
    if ranks.rank == ranks.size - 1:
        it["of the last"].grad = torch.full((2,), 5.0)
    it["rows"] = torch.ones(4, 2)
    if ranks.rank != 1:  # twice the first row, and one of its own; the second rank has none
        numbers, values = torch.tensor([[0, 0, ranks.rank + 1]]), torch.full((3, 2), ranks.rank + 1.0)
        it["rows"].grad = torch.sparse_coo_tensor(numbers, values, (4, 2), check_invariants=True)
    parallel.add_gradients(it, ranks)
    return {name: parameter.grad for name, parameter in it.items()}


def poisoned(ranks: Ranks) -> str:
    """Return what is said when the last row of the batch carries a state that is not finite."""
    it = trainer(**STEPS | {"train_steps": 1})
    run = begin(it, TASK, model(), 0)
    run.carry = parallel.own_rows(run.carry, ranks)
    list(train(run, it, TASK, BPTT(), 0, ranks))
    if ranks.rank == ranks.size - 1:
        run.carry.state["z_H"][-1] = float("nan")
    try:
        list(train(run, trainer(**STEPS), TASK, BPTT(), 0, ranks))
    except NonFinite as error:
        return str(error)
    return ""
