"""Which gradient an implicit one should fall back on, for cells of one update that have not reached a fixed point."""

import copy
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from loopgrad.analysis import compare_gradients
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.fallback_cells import CELLS
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
from loopgrad.gradients import BPTT, CheckpointedBPTT, Estimator, ImplicitGradient, PhantomGradient, TruncatedBPTT

TEACHER_DEPTH = 4
LEARNING_RATE = 2e-3


def candidates(length: int) -> dict[str, Estimator]:
    """Return what is compared at a number of updates: the gate with each fallback, and the gradient without a gate."""
    fallbacks: dict[str, Estimator] = {f"last {k}": TruncatedBPTT(num_cycles=k) for k in (1, 2, 4, 8)}
    fallbacks["last sqrt T"] = TruncatedBPTT(num_cycles=math.ceil(math.sqrt(length)))
    fallbacks |= {"phantom 4": PhantomGradient(num_steps=4), "phantom 4, damped": PhantomGradient(4, damping=0.5)}
    fallbacks["checkpointed"] = CheckpointedBPTT()
    gated: dict[str, Estimator] = {name: ImplicitGradient(fallback=it) for name, it in fallbacks.items()}
    return {**gated, "ungated": ImplicitGradient(on_unconverged="ignore")}


@dataclass(frozen=True)
class Fallback(Bench):
    """Four cells learn a map that takes depth, by BPTT; at each stage the gradients of their weights are compared.

    Columns: stage, steps of training; updates, of the recursion that is differentiated; residual, median relative
    |f(z) - z| at its end; trusted, share of samples that pass the gate; error and cosine, of the gradient of the cell's
    weights to BPTT's; vjps and evaluations of the cell, of the whole step. All in float64, means over seeds.

    Args:
        size: Features.
        positions: Tokens of a sample.
        batch_size: Samples.
        stages: Steps of training at which gradients are compared.
        lengths: Numbers of updates of the recursion; training runs the first.
        seeds: Seeds of weights and data.
    """

    size: int = 32
    positions: int = 4
    batch_size: int = 16
    stages: tuple[int, ...] = (0, 100, 400)
    lengths: tuple[int, ...] = (16, 64)
    seeds: tuple[int, ...] = (0, 1, 2)

    least: ClassVar = {"stages": 0}

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> list[dict[str, Any]]:
        """Measure every candidate on every cell at every stage and length."""
        parts = [
            Part(
                f"{name}, seed {seed}",
                partial(self._of, name, seed),
                len(self.stages) * len(self.lengths) * len(candidates(1)),
            )
            for name in CELLS
            for seed in self.seeds
        ]
        runs = list(ledger.each(parts))
        keys = ("cell", "stage", "updates", "fallback")
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in runs:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row)
        rest = [key for key in runs[0] if key not in keys]
        return [
            {**dict(zip(keys, where, strict=True)), **{key: statistics.fmean(row[key] for row in rows) for key in rest}}
            for where, rows in groups.items()
        ]

    def text(self, rows: list[dict[str, Any]]) -> str:
        """Say how each candidate does over all settings."""
        settings: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
        for row in rows:
            settings.setdefault((row["cell"], row["stage"], row["updates"]), {})[row["fallback"]] = row
        lines = []
        for name in dict.fromkeys(row["fallback"] for row in rows):
            found = [setting[name] for setting in settings.values()]
            better = sum(setting[name]["error"] < setting["ungated"]["error"] for setting in settings.values())
            error = statistics.median(row["error"] for row in found)
            cosine = statistics.median(row["cosine"] for row in found)
            least = min(row["cosine"] for row in found)
            work = statistics.fmean((row["vjps"] + row["evaluations"]) / row["updates"] for row in found)
            lines.append(
                f"{name}: error {error:.3g} and cosine {cosine:.3f} in the median, least cosine {least:.3f}; "
                f"closer than ungated in {better} of {len(found)}; {work:.2f} evaluations and vjps per update"
            )
        return "\n".join(lines)

    def _of(self, name: str, seed: int) -> Iterator[dict[str, Any]]:
        generator = torch.Generator().manual_seed(seed)
        learner = _Learner(name, self, generator)
        optimizer = torch.optim.Adam(learner.parameters(), LEARNING_RATE)
        for step in range(max(self.stages) + 1):
            batch = learner.batch(self.batch_size, generator)
            if step in self.stages:
                yield from (row for length in self.lengths for row in _compared(learner, batch, step, length))
            optimizer.zero_grad()
            learner.loss(BPTT(), batch, self.lengths[0])[0].backward()
            optimizer.step()


class _Learner(nn.Module):
    """A cell and a readout, beside the map that they learn: a random layer of its own applied over and over."""

    def __init__(self, name: str, sizes: Fallback, generator: torch.Generator):
        super().__init__()
        self.name, self.shape = name, (sizes.positions, sizes.size)
        self.cell = CELLS[name](sizes.size, generator).double()
        self.readout = nn.Linear(sizes.size, sizes.size, bias=False).double()
        with torch.no_grad():
            self.readout.weight.normal_(0, sizes.size**-0.5, generator=generator)
        self.teacher = 2 * torch.randn(sizes.size, sizes.size, generator=generator).double() / sizes.size**0.5

    def batch(self, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return first states, inputs and targets."""
        z, x = (torch.randn(samples, *self.shape, generator=generator).double() for _ in range(2))
        y = x
        for _ in range(TEACHER_DEPTH):
            y = torch.tanh(y @ self.teacher)
        return 0.5 * z, x, y

    def loss(self, estimator: Estimator, batch: tuple[Tensor, Tensor, Tensor], length: int) -> tuple[Tensor, Any]:
        """Return the loss of a batch and the rollout's cost."""
        z, x, y = batch
        rollout = estimator(self.cell, z, x, length)
        return (self.readout(rollout.state) - y).square().mean(), rollout.stats


def _compared(
    learner: _Learner, batch: tuple[Tensor, Tensor, Tensor], stage: int, length: int
) -> Iterator[dict[str, Any]]:
    learner = copy.deepcopy(learner)  # gradients of their own
    exact, _ = _gradient(learner, BPTT(), batch, length)
    for name, estimator in candidates(length).items():
        found, stats = _gradient(learner, estimator, batch, length)
        agreement, numbers = compare_gradients(found, exact), stats.numbers()
        yield {
            "cell": learner.name,
            "stage": stage,
            "updates": length,
            "fallback": name,
            "residual": numbers["forward_residual_median"],
            "trusted": numbers["trusted"],
            "error": agreement.relative_error,
            "cosine": agreement.cosine,
            "vjps": stats.vjps,
            "evaluations": stats.cell_evaluations,
        }


def _gradient(
    learner: _Learner, estimator: Estimator, batch: tuple[Tensor, Tensor, Tensor], length: int
) -> tuple[dict[str, Tensor], Any]:
    learner.zero_grad()
    loss, stats = learner.loss(estimator, batch, length)
    loss.backward()
    return {name: p.grad.clone() for name, p in learner.cell.named_parameters() if p.grad is not None}, stats
