"""Hypergradients by every estimator, and by higher: two scalars, a state of many weights, and training as recursion."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.analysis import interleaved, measure, median_ratio
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.inner_training import HYPERPARAMETERS, Problem, mlp, reference, ridge
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
from loopgrad.gradients import BPTT, CheckpointedBPTT, Estimator, ImplicitGradient, ReversibleBPTT, TruncatedBPTT
from loopgrad.gradients.forward_mode import ForwardMode
from loopgrad.models import Damped

COLUMNS = ("d log lr", "d log decay", "error", "trusted", "saved MiB", "peak MiB", "evaluations", "time")


@dataclass(frozen=True)
class Hypergradient(Bench):
    """d validation loss / d (log lr, log decay) after T steps of SGD, of a ridge regression and a tanh network.

    Rows: "implicit, gated" solves to a relative residual of 1e-10 by GMRES, and falls back on one differentiated update
    where the gate does not trust the solution; "ungated" (on_unconverged="ignore") takes it in any case, the raw
    number, by GMRES and by a Neumann series. "higher" is the unroll of that library. "damped" is another dynamical
    system, `Damped(cell)`, which has the same fixed points: what can be undone is compared with BPTT through it.

    Columns: the two hypergradients; error, of both relative to BPTT's; trusted, what the gate said; bytes saved and
    peak bytes of a forward and backward pass; evaluations of the cell (steps, for higher); CPU time over BPTT's. All in
    float64. The state leaves are weights, not samples, so implicit solves have scope="batch".

    Args:
        hidden_size: Hidden features of the network; half as many are the features of the ridge regression.
        samples: Samples of training and of validation.
        lengths: Steps of SGD.
        seed: Seed of data and first weights.
    """

    hidden_size: int = 64
    samples: int = 256
    lengths: tuple[int, ...] = (20, 300)
    seed: int = 0
    repeats: int = field(default=3, kw_only=True)

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> list[dict[str, Any]]:
        """Measure every estimator on both problems at every length."""
        if self.hidden_size < 2 or self.samples < 1 or not all(length > 0 for length in self.lengths):
            raise ValueError("hidden_size must be at least 2, samples and all lengths at least 1")
        problems = {
            "ridge": ridge(self.hidden_size // 2, self.samples, seed=self.seed),
            "mlp": mlp(hidden=self.hidden_size, samples=self.samples, seed=self.seed),
        }
        parts = [
            Part(f"{name}, {length} updates", partial(self._of, name, problem, length), len(_estimators()) + 1)
            for name, problem in problems.items()
            for length in self.lengths
        ]
        return list(ledger.each(parts))

    def _of(self, name: str, problem: Problem, length: int) -> list[dict[str, Any]]:
        found = measured(problem, length, self.repeats)
        return [{"problem": name, "T": length, "estimator": key, **row} for key, row in found.items()]


def _estimators() -> dict[str, Estimator]:
    solve: dict[str, Any] = {"scope": "batch", "rtol": 1e-10, "max_vjps": 100}
    return {
        "BPTT": BPTT(),
        "checkpointed": CheckpointedBPTT(),
        "truncated, 1": TruncatedBPTT(num_steps=1),
        "truncated, 5": TruncatedBPTT(num_steps=5),
        "implicit, gated": ImplicitGradient("gmres", fallback=TruncatedBPTT(num_cycles=1), **solve),
        "implicit, ungated": ImplicitGradient("gmres", on_unconverged="ignore", **solve),
        "Neumann, ungated": ImplicitGradient("neumann", on_unconverged="ignore", **solve),
        "forward mode": ForwardMode(parameters=list(HYPERPARAMETERS)),
        "damped, BPTT": BPTT(),
        "damped, reversible": ReversibleBPTT(),
    }


def measured(problem: Problem, length: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Return the columns of every estimator on one problem."""
    damped = Damped(problem.cell)
    cells = {name: damped if name.startswith("damped") else problem.cell for name in _estimators()}
    runs: dict[str, Callable[[], Tensor]] = {
        name: partial(problem.loss, estimator, length, cells[name]) for name, estimator in _estimators().items()
    }
    runs["higher"] = lambda: problem.outer_loss(reference(problem, length))
    found: dict[str, dict[str, Any]] = {}
    gradients = {}
    for name, run in list(runs.items()):
        try:
            gradients[name] = problem.hypergradient(run())
        except ImportError:  # higher is an extra
            found["higher, not installed"] = dict.fromkeys(COLUMNS, math.nan) | {"trusted": "-"}
            del runs[name]
    seconds = interleaved(runs, repeats=repeats, warmup=0, clock=time.process_time)
    exclude = [problem.state, problem.train, problem.validation]
    for name, run in runs.items():
        cost = measure(run, cell=cells.get(name), exclude=[*exclude, problem.cell], repeats=0, warmup=0)
        got, exact = gradients[name], gradients["damped, BPTT" if name.startswith("damped") else "BPTT"]
        values = [
            *got.tolist(),
            float((got - exact).norm() / exact.norm()),
            _trusted(problem, _estimators().get(name), length, cells.get(name)),
            cost.saved_bytes / 2**20,
            cost.peak_bytes / 2**20,
            length if cost.cell_evaluations is None else cost.cell_evaluations,
            median_ratio(seconds[name], seconds["BPTT"]),
        ]
        found[name] = dict(zip(COLUMNS, values, strict=True))
    return found


def _trusted(problem: Problem, estimator: Estimator | None, length: int, cell: nn.Module | None) -> str:
    """Return what the gate says of an implicit gradient, "-" of another."""
    if not isinstance(estimator, ImplicitGradient) or cell is None:
        return "-"
    rollout = estimator(cell, problem.state, problem.train, length)
    torch.autograd.grad(problem.outer_loss(rollout.state), problem.hyperparameters)
    return "yes" if rollout.stats.numbers()["trusted"] == 1 else "no"
