"""Backward through a fixed point to a given gradient error: our linear solvers beside torchdeq's, on two cells."""

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from loopgrad.analysis import measure, median_ratio
from loopgrad.experiments.benches.cells import SiluCell
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
from loopgrad.gradients import Estimator, ImplicitGradient, TorchDEQ

OURS = ("gcr", "gmres", "bicgstab", "neumann", "anderson")
THEIRS = ("fixed_point_iter", "anderson", "broyden")
SETTLING = 2000  # updates that the fixed point is iterated for, in float64


@dataclass(frozen=True)
class Implicit(Bench):
    """One cell at two spectral radii, at its fixed point: what each solver takes to a gradient error.

    Rows: for every target error the cheapest run of each solver over a range of tolerances whose measured error is
    within it. Columns: rho, median over samples of the spectral radius of J; vjps, products of the cell in backward,
    the one for the parameters included; evaluations, of the whole step; error, of the gradient of weights and x
    relative to dense solves in float64; time, CPU time of the backward pass over that of torchdeq's fastest; vjps /
    torchdeq, over torchdeq's fewest; peak MiB, forward and backward. A solver that does not get there has no numbers.

    Args:
        hidden_size: Features.
        batch_size: Samples.
        targets: Relative gradient errors.
        per_decade: Tolerances of the solvers that are tried per decade, down to 1e-5.
    """

    hidden_size: int = 128
    batch_size: int = 64
    targets: tuple[float, ...] = (1e-1, 1e-2, 1e-3)
    per_decade: int = 4
    repeats: int = field(default=7, kw_only=True)

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> list[dict[str, Any]]:
        """Measure both cells."""
        rows = len(self.targets) * (len(OURS) + len(THEIRS))
        parts = [
            Part(f"gain {gain}, injection {injection}", partial(self._of, gain, injection), rows)
            for gain, injection in ((0.5, 4.0), (0.1, 1.0))
        ]
        return list(ledger.each(parts))

    def _of(self, gain: float, injection: float) -> list[dict[str, Any]]:
        problem = Problem.of(self.hidden_size, self.batch_size, gain, injection)
        tried = {name: [Run.of(problem, e) for e in candidates] for name, candidates in self._candidates()}
        rows = []
        for target in self.targets:
            # of fewest products, the first of equals
            within = {name: [run for run in runs if run.error <= target] for name, runs in tried.items()}
            best = {name: min(runs, key=lambda run: run.vjps, default=None) for name, runs in within.items()}
            found = {name: run for name, run in best.items() if run is not None}
            seconds = problem.seconds({name: run.estimator for name, run in found.items()}, self.repeats)
            theirs = [name for name in found if name.startswith("torchdeq")]
            fastest = min(theirs, key=lambda name: statistics.median(seconds[name]), default=None)
            fewest = min((found[name].vjps for name in theirs), default=math.nan)
            for name, run in best.items():
                row: dict[str, Any] = {"rho": problem.radius, "target": target, "solver": name}
                if run is None:
                    keys = ("vjps", "evaluations", "error", "time", "vjps / torchdeq", "peak MiB")
                    rows.append({**row, **dict.fromkeys(keys, math.nan)})
                    continue
                ratio = median_ratio(seconds[name], seconds[fastest]) if fastest else math.nan
                row |= {"vjps": run.vjps, "evaluations": run.evaluations, "error": run.error, "time": ratio}
                rows.append({**row, "vjps / torchdeq": run.vjps / fewest, "peak MiB": run.peak / 2**20})
        return rows

    def _candidates(self) -> Iterator[tuple[str, list[Estimator]]]:
        """Yield solvers with estimators from loose to tight."""
        tolerances = [10 ** (-k / self.per_decade) for k in range(1, 5 * self.per_decade + 1)]
        for solver in OURS:
            limit = 400 if solver in ("neumann", "anderson") else 100
            base = {"solver": solver, "max_vjps": limit, "check_every": 1, "on_unconverged": "ignore"}
            yield f"ours, {solver}", [ImplicitGradient(rtol=t, **base) for t in tolerances]
        for solver in THEIRS:
            base = {"b_solver": solver, "b_stop_mode": "rel", "b_max_iter": 400, "f_tol": 0.0}
            yield f"torchdeq, {solver}", [TorchDEQ(b_tol=t, **base) for t in tolerances]


@dataclass(frozen=True)
class Problem:
    """A cell at its fixed point, the cotangent, and the gradient by dense solves."""

    cell: SiluCell
    x: Tensor
    fixed: Tensor
    cotangent: Tensor
    exact: Tensor
    radius: float

    @classmethod
    def of(cls, size: int, batch: int, gain: float, injection: float) -> "Problem":
        """Iterate to the fixed point and solve there, in float64."""
        generator = torch.Generator().manual_seed(0)
        cell = SiluCell(size, gain, injection, generator)
        x = torch.randn(batch, size, generator=generator)
        cotangent = torch.randn(batch, size, generator=generator)
        wide = {name: p.detach().double() for name, p in cell.named_parameters()}

        def update(z: Tensor, x: Tensor) -> Tensor:
            return functional_call(cell, wide, (z, x, 0))

        with torch.no_grad():
            z = torch.zeros(batch, size, dtype=torch.float64)
            for _ in range(SETTLING):
                z = update(z, x.double())
            jacobians = vmap(jacrev(update))(z, x.double())
            w = torch.linalg.solve(torch.eye(size, dtype=torch.float64) - jacobians.mT, cotangent.double())
            radius = torch.linalg.eigvals(jacobians).abs().amax(dim=1).median().item()
        leaves = [p.requires_grad_() for p in wide.values()] + [x.double().requires_grad_()]
        image = functional_call(cell, dict(zip(wide, leaves, strict=False)), (z, leaves[-1], 0))
        exact = torch.cat([g.flatten() for g in torch.autograd.grad((image * w).sum(), leaves)])
        return cls(cell, x.requires_grad_(), z.float(), cotangent, exact, radius)

    def loss(self, estimator: Estimator) -> Tensor:
        """Return the loss after one update from the fixed point: the search itself is not measured here."""
        return (estimator(self.cell, self.fixed, self.x, 1).state * self.cotangent).sum()

    def gradient(self, estimator: Estimator) -> Tensor:
        """Return the gradient of the weights and x."""
        leaves = [*self.cell.parameters(), self.x]
        return torch.cat([g.flatten() for g in torch.autograd.grad(self.loss(estimator), leaves)])

    def seconds(self, estimators: dict[str, Estimator], repeats: int) -> dict[str, list[float]]:
        """Time the backward passes in turn."""
        found: dict[str, list[float]] = {name: [] for name in estimators}
        for _ in range(repeats + 1):
            for name, estimator in estimators.items():
                for timed in (False, True):
                    self.cell.zero_grad()
                    loss = self.loss(estimator)
                    start = time.process_time()
                    loss.backward()
                    if timed:
                        found[name].append(time.process_time() - start)
        return {name: seconds[1:] for name, seconds in found.items()}


@dataclass(frozen=True)
class Run:
    """What one estimator took, and how far its gradient is off."""

    estimator: Estimator
    error: float
    vjps: int
    evaluations: int
    peak: int

    @classmethod
    def of(cls, problem: Problem, estimator: Estimator) -> "Run":
        """Measure the error, the counts and the bytes."""
        found = problem.gradient(estimator).double()
        error = float((found - problem.exact).norm() / problem.exact.norm())
        exclude = [problem.x, problem.fixed, problem.cotangent]
        costs = measure(lambda: problem.loss(estimator), cell=problem.cell, exclude=exclude, repeats=0, warmup=0)
        assert costs.vjps is not None and costs.cell_evaluations is not None
        return cls(estimator, error, costs.vjps, costs.cell_evaluations, costs.peak_bytes)
