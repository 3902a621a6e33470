"""How often two processes that share weights by `fully_shard` (FSDP2) gather them in one training step of a recursion.

The hooks of `fully_shard` act at every call of a module: a cell in a plain loop is gathered anew at every update, and
again in its backward pass. Estimators quieten them for the length of the recursion; see loopgrad/gradients/around.py.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.utils._python_dispatch import TorchDispatchMode

from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    Estimator,
    ImplicitGradient,
    RandomTruncation,
    ReversibleBPTT,
    TruncatedBPTT,
)
from loopgrad.models import Damped

WORLD = 2
BOUND = 300.0
"""Seconds after which the processes are ended: none of them takes part any more."""
PLACES = ("cell", "cell+model", "blocks+cell+model")
LOOP = "plain loop"
METHODS: dict[str, Callable[[], Estimator | None]] = {
    LOOP: lambda: None,
    "BPTT": BPTT,
    "CheckpointedBPTT": CheckpointedBPTT,
    "ReversibleBPTT": ReversibleBPTT,
    "TruncatedBPTT(2)": lambda: TruncatedBPTT(num_steps=2),
    "RandomTruncation": lambda: RandomTruncation(mean_steps=4, seed=0),
    "ImplicitGradient": lambda: ImplicitGradient(rtol=1e-4, max_vjps=20, on_unconverged="ignore"),
}


class Cell(nn.Module):
    """z <- tanh(W_n ... tanh(W_1 z) + x) / 2: a block per W."""

    def __init__(self, width: int, num_blocks: int):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(num_blocks))
        self.out = nn.Linear(width, width)

    def forward(self, z: Tensor, x: Tensor, step: int) -> Tensor:
        """Map (batch, width) to the same shape."""
        y = z
        for block in self.blocks:
            y = block(y)
        return 0.5 * torch.tanh(self.out(y) + x)


class Model(nn.Module):
    """An encoder, a recursion by a method, and the mean square of its last state."""

    def __init__(self, bench: "Gathers", method: str):
        super().__init__()
        self.encoder, cell = nn.Linear(bench.width, bench.width), Cell(bench.width, bench.num_blocks)
        self.inner = [cell]  # in a list, which makes it no part a second time
        self.cell = Damped(cell) if method == "ReversibleBPTT" else cell
        self.estimator, self.updates = METHODS[method](), bench.updates
        self.double()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in self.parameters():
                weight.normal_(0, bench.width**-0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss of a batch (batch, width)."""
        x = self.encoder(x)
        z = torch.zeros_like(x)
        if self.estimator is not None:
            return self.estimator(self.cell, z, x, self.updates).state.square().mean()
        for step in range(self.updates):
            z = self.cell(z, x, step)
        return z.square().mean()


@dataclass(frozen=True)
class Gathers(Bench):
    """All-gathers and reduce-scatters of one training step, in float64, on two processes (gloo).

    Columns: sharded, where `fully_shard` was called; resharded, its `reshard_after_forward`; units, how often it was
    called; all-gathers and reduce-scatters per step; error, of the gradient of the cell, relative to that of the same
    method in one process on the whole batch.

    Args:
        width: Features.
        num_blocks: Blocks of the cell.
        updates: Updates of a step.
        batch_size: Samples, an even number: half of them on each process.

    Raises:
        ValueError: batch_size is odd.
    """

    width: int = 16
    num_blocks: int = 2
    updates: int = 16
    batch_size: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % WORLD:
            raise ValueError(f"batch_size={self.batch_size} must be even: each of two processes has half of it")

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> list[dict[str, Any]]:
        """Measure every method in every way to share, in two processes."""
        return list(ledger.each([Part("two processes", self._measured_by_both)]))

    def _measured_by_both(self) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            started: Any = multiprocessing.start_processes(
                _measured, (self, folder), nprocs=WORLD, join=False, start_method="spawn"
            )
            end = time.monotonic() + BOUND
            try:
                while not started.join(timeout=1):
                    if time.monotonic() > end:
                        raise ValueError(f"two processes were not done after {BOUND:.0f} s")
            finally:
                for process in started.processes:
                    if process.is_alive():
                        process.kill()
            return json.loads((Path(folder) / "rows.json").read_text())

    def text(self, rows: list[dict[str, Any]]) -> str:
        """Say how often the plain loop gathers beside the estimators, where weights are given back after forward."""
        said = []
        for place in PLACES:
            of_place = [row for row in rows if row["sharded"] == place and row["resharded"] == "yes"]
            loop = next(row["all-gathers"] for row in of_place if row["method"] == LOOP)
            ours = sorted({row["all-gathers"] for row in of_place if row["method"] != LOOP})
            said.append(f"{place}: {' or '.join(map(str, ours))} where the plain loop has {loop}")
        return f"All-gathers per step of {self.updates} updates, weights given back after forward: {'; '.join(said)}."


class _Collectives(TorchDispatchMode):
    """Counts what processes exchange in the block, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._opname.strip("_").removesuffix("_base")
            self.found[name] = self.found.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def _measured(rank: int, bench: Gathers, folder: str) -> None:
    """Measure in one of the processes; the first stores the rows."""
    torch.set_num_threads(bench.num_threads)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    rows = [
        _row(bench, rank, place, reshard, method) for place in PLACES for reshard in (True, False) for method in METHODS
    ]
    if rank == 0:
        (Path(folder) / "rows.json").write_text(json.dumps(rows))
    distributed.barrier()
    distributed.destroy_process_group()


def _row(bench: Gathers, rank: int, place: str, reshard: bool, method: str) -> dict[str, Any]:
    from torch.distributed.fsdp import fully_shard

    x = torch.randn(bench.batch_size, bench.width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = Model(bench, method)
    modules = {"blocks": [*model.inner[0].blocks], "cell": [model.cell], "model": [model]}
    units = [module for name in place.split("+") for module in modules[name]]
    for module in units:
        fully_shard(module, reshard_after_forward=reshard)
    half = bench.batch_size // WORLD
    own, found = x[rank * half : (rank + 1) * half], {}
    for _ in range(2):  # the first step prepares what later ones use
        found = _step(model, partial(model, own))
    shared: Any = list(model.cell.parameters())
    gradient = torch.cat([parameter.grad.full_tensor().flatten() for parameter in shared])
    alone = Model(bench, method)
    for _ in range(2):
        _step(alone, partial(alone, x))
    exact = torch.cat([p.grad.flatten() for p in alone.cell.parameters() if p.grad is not None])
    return {
        "sharded": place,
        "resharded": "yes" if reshard else "no",
        "method": method,
        "units": len(units),
        "all-gathers": found.get("allgather", 0),
        "reduce-scatters": found.get("reduce_scatter", 0),
        "error": float((gradient - exact).norm() / exact.norm()),
    }


def _step(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, int]:
    """Return what is exchanged in a forward and backward pass."""
    model.zero_grad()
    with _Collectives() as collectives:
        loss().backward()
    return collectives.found
