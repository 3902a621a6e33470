"""Training a GRU on rolling sums under every estimator: held-out loss against FLOPs and against bytes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from loopgrad.analysis import measure, plots
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger
from loopgrad.experiments.benches.rates import best_rates
from loopgrad.experiments.benches.reader import RollingSums, Target
from loopgrad.experiments.processes import at_once
from loopgrad.experiments.training.seeds import seed_for
from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    Estimator,
    ForwardGradient,
    RandomTruncation,
    TruncatedBPTT,
)

NAMES = ("BPTT", "checkpointed", "truncated", "random truncation", "forward, state", "zeroth order")
LOOKS = 9  # at the held-out loss: after N / 2^8, ..., N / 2, N updates


@dataclass(frozen=True)
class RollingSum(Bench):
    """Held-out loss of a GRU that reads one token per update, trained under each estimator.

    Every estimator sees the same sequences in the same order from the same weights, for as many updates, with Adam and
    a gradient norm of at most 1. The learning rate is each one's own: that of `learning_rates` with the least held-out
    loss at the first length of the target, on a seed and on held-out sequences that nothing else uses.

    A row is an estimator on one of `targets` at one of `lengths`: mean held-out loss after a quarter of the updates and
    at the end, there with the least and the greatest seed; FLOPs (of matrix products) and peak bytes of a forward and a
    backward pass. Random truncation: FLOPs of its mean, bytes of the longest of its draws. The record holds the curves.

    With "modulo", losses of all positions are in the last state, and the truncated ones see those of their last
    updates alone.

    Args:
        targets: As in `RollingSums`, "sum" or "modulo".
        lengths: Tokens, and so updates of the recursion, for each of them.
        updates: Updates of the weights, for each of them.
        modulus: Number of tokens.
        hidden_size: Features.
        batch_size: Sequences.
        learning_rates: To choose from.
        window: Updates of the truncated gradient, and the mean of the random one.
        num_tangents: Tangents of "forward, state", whose last update is exact, and of "zeroth order".
        seeds: Seeds of weights, data and noise; a row is over all of them.
        workers: Trainings at once; null: as many as there are cores. Changes no number.
    """

    targets: tuple[str, ...] = ("sum", "sum", "sum", "modulo")
    lengths: tuple[int, ...] = (50, 200, 1000, 50)
    updates: tuple[int, ...] = (300, 300, 150, 300)
    modulus: int = 2
    hidden_size: int = 64
    batch_size: int = 64
    learning_rates: tuple[float, ...] = (0.01, 0.003, 0.001)
    window: int = 8
    num_tangents: int = 8
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int | None = None

    least: ClassVar = {"window": 2}

    def __post_init__(self) -> None:
        for name in ("targets", "lengths", "updates", "learning_rates", "seeds"):  # a configuration gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()
        if not len(self.targets) == len(self.lengths) == len(self.updates):
            raise ValueError("targets, lengths and updates must be as many: one of each per row of trainings")
        for target, length in zip(self.targets, self.lengths, strict=True):
            RollingSums(target, length, self.modulus)  # pyright: ignore[reportArgumentType]

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> list[dict[str, Any]]:
        """Choose learning rates, train, and measure."""
        cases = list(zip(self.targets, self.lengths, self.updates, strict=True))
        workers = at_once(1000, self.workers, torch.device("cpu"), self.num_threads)
        chosen = self._learning_rates(cases, workers, ledger)
        rows = [
            [Training(self, target, length, updates, name, chosen[target, name], seed) for seed in self.seeds]  # pyright: ignore
            for target, length, updates in cases
            for name in NAMES
        ]
        # the longest first, so that none is waited for at the end
        jobs = sorted((job for row in reversed(rows) for job in row), key=lambda job: -job.length * job.updates)
        curves = dict(zip(jobs, ledger.mapped(train, jobs, workers, Curve), strict=True))
        return [_row(row, [curves[job] for job in row]) for row in rows]

    def figures(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Draw loss against FLOPs and against bytes."""
        curves = [
            plots.Learning(
                r["estimator"],
                f"{r['task']} tokens",
                r["peak MiB"] * 2**20,
                [u * r["MFLOP"] * 1e6 for u in r["updates"]],
                r["losses"],
            )
            for r in rows
        ]
        plots.save(plots.learning(curves), folder / "rolling_sum-figure")

    def _learning_rates(
        self, cases: Sequence[Any], workers: int, ledger: Ledger = NOTHING_KEPT
    ) -> dict[tuple[str, str], float]:
        first = {target: (length, updates) for target, length, updates in reversed(cases)}
        tried = [
            Training(self, target, *sizes, name, rate, max(self.seeds) + 1, data_seed=1)  # pyright: ignore
            for target, sizes in first.items()
            for name in reversed(NAMES)
            for rate in self.learning_rates
        ]
        if len(self.learning_rates) == 1:
            return {(job.target, job.name): job.learning_rate for job in tried}
        ended = zip(tried, ledger.mapped(train, tried, workers, Curve), strict=True)
        return best_rates(((job.target, job.name), job.learning_rate, curve.losses[-1]) for job, curve in ended)


@dataclass(frozen=True)
class Training:
    """One training: whose numbers follow from these alone."""

    bench: RollingSum
    target: Target
    length: int
    updates: int
    name: str
    learning_rate: float
    seed: int
    data_seed: int = 0

    def __str__(self) -> str:
        return f"{self.name} on {self.length} tokens, {self.target}, seed {self.seed}"

    @property
    def task(self) -> RollingSums:
        """What is learnt."""
        return RollingSums(self.target, self.length, self.bench.modulus, self.data_seed)

    @property
    def looks(self) -> list[int]:
        """Numbers of updates after which the held-out loss is taken."""
        return sorted({self.updates >> i for i in range(LOOKS)} | {0})

    def estimator(self) -> Estimator:
        """Return a new one."""
        tangents, seed = self.bench.num_tangents, seed_for("estimator", self.seed)
        return {
            "BPTT": BPTT(),
            "checkpointed": CheckpointedBPTT(),
            "truncated": TruncatedBPTT(num_steps=self.bench.window),
            "random truncation": RandomTruncation(mean_steps=self.bench.window, seed=seed),
            "forward, state": ForwardGradient(tangents, seed=seed),
            "zeroth order": ForwardGradient(tangents, "weights", window=0, mode="central", seed=seed),
        }[self.name]


@dataclass(frozen=True)
class Curve:
    """What a training left: held-out losses at its looks, and the vjps of each update where they vary."""

    losses: list[float]
    vjps: list[int]


def train(job: Training) -> Curve:
    """Train, and take the held-out loss on the way."""
    torch.set_num_threads(job.bench.num_threads)
    task, estimator = job.task, job.estimator()
    model, held_out = task.model(job.bench.hidden_size, seed_for("weights", job.seed)), task.held_out()
    optimiser = torch.optim.Adam(model.parameters(), job.learning_rate)
    losses, vjps = [], []
    for step in range(job.updates + 1):
        if step in job.looks:
            with torch.no_grad():
                losses.append(float(task.loss(model, held_out, BPTT())[0]))
        if step == job.updates or not math.isfinite(losses[-1]):
            break
        loss, rollout = task.loss(model, task.batch(seed_for("data", job.seed), step, job.bench.batch_size), estimator)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        vjps.append(rollout.stats.vjps)
    return Curve(losses + [math.nan] * (len(job.looks) - len(losses)), vjps)


def _row(jobs: list[Training], curves: list[Curve]) -> dict[str, Any]:
    job = jobs[0]
    if job.name == "random truncation":
        one, two = (_cost(job, TruncatedBPTT(num_steps=k)).flops for k in (1, 2))
        vjps = [sum(curve.vjps) / len(curve.vjps) for curve in curves]
        flops = one + (sum(vjps) / len(vjps) - 1) * (two - one)
        peak = _cost(job, TruncatedBPTT(num_steps=max(max(curve.vjps) for curve in curves))).peak_bytes
    else:
        cost = _cost(job, job.estimator())
        flops, peak = cost.flops, cost.peak_bytes
    last = [curve.losses[-1] for curve in curves]
    quarter = [curve.losses[-3] for curve in curves]
    return {
        "task": f"{job.target}, {job.length}",
        "estimator": job.name,
        "lr": job.learning_rate,
        "loss at 1/4": sum(quarter) / len(quarter),
        "at the end": sum(last) / len(last),
        "seeds": f"{min(last):.3g}-{max(last):.3g}",
        "MFLOP": flops / 1e6,
        "peak MiB": peak / 2**20,
        "updates": job.looks,
        "losses": [curve.losses for curve in curves],
    }


def _cost(job: Training, estimator: Estimator) -> Any:
    model = job.task.model(job.bench.hidden_size, 0)
    tokens = job.task.batch(0, 0, job.bench.batch_size)
    return measure(
        lambda: job.task.loss(model, tokens, estimator)[0],
        cell=model["cell"],
        exclude=[model, tokens],
        repeats=0,
        warmup=0,
    )
