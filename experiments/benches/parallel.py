"""All updates at once by Newton's method, on recursions whose largest Lyapunov exponent is set: steps, depth, work."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from loopgrad.analysis import StateMap, lyapunov, plots
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
from loopgrad.experiments.benches.parallel_words import words
from loopgrad.gradients import BPTT, Estimator, ParallelNewton

WAYS: dict[str, dict[str, Any]] = {
    "DEER": {"jacobian": "full"},
    "quasi-DEER": {"jacobian": "diagonal"},
    "ELK": {"jacobian": "full", "damping": 1.0},
    "quasi-ELK": {"jacobian": "diagonal", "damping": 1.0},
}
SAME = 1e-6  # states that are no further apart are those of the loop
CUTS = 14  # of the interval in which the gain lies: to 3e-4


class Driven(nn.Module):
    """z <- tanh(gain W z + x_t), with W of independent normal numbers of variance 1 / size."""

    def __init__(self, weight: Tensor, gain: float):
        super().__init__()
        self.weight = nn.Parameter(gain * weight)

    def forward(self, z: Tensor, x: Tensor, step: int) -> Tensor:
        """Apply an update."""
        return torch.tanh(z @ self.weight.T + x)


class Orbit(StateMap):
    """The updates of a cell along its inputs: each push is the next update."""

    def __init__(self, cell: nn.Module, state: Tensor, xs: Tensor):
        super().__init__(cell, state, xs[0])
        self._queue = iter(xs)

    def push(self, z: Tensor, *vectors: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the state after the next update, and its Jacobian's products."""
        return StateMap(self._cell, z, next(self._queue)).push(z, *vectors)


@dataclass(frozen=True)
class Parallel(Bench):
    """How many operations wait for one another when a recursion is solved for at once, and how that goes with chaos.

    A tanh network with random inputs, float64, whose gain is set by bisection so that `lyapunov` measures a given
    largest exponent along the very orbit. A row is a way to solve for its states at an exponent. measured: that
    exponent, mean over samples. iterations: steps of Newton's method. levels: batches of products that wait for one
    another in the linear recursion of each. depth: iterations times levels, and one evaluation of all updates before
    each step and at the end; speed-up: updates over depth. apart: largest distance of a state from the loop's, met: at
    most 1e-6, and the residual is within the tolerance; a way that has run out of iterations has fallen back on the
    loop and is not. gradient: relative error by the weights, of the sum of a loss at all updates, beside BPTT.
    products: FLOPs of matrix products, forward and back, over those of BPTT; those of factorisations and of diagonals
    are not counted. Jacobian MiB: what the Jacobians of all updates hold.

    Args:
        size: Features.
        batch_size: Samples.
        num_steps: Updates T.
        growths: Factors by which differences grow at an update in the mean: exponents are their logarithms.
        max_iterations: Most steps.
        seed: Of weights, states and inputs.
    """

    size: int = 16
    batch_size: int = 2
    num_steps: int = 1024
    growths: tuple[float, ...] = (0.6065, 0.8187, 0.9048, 0.9512, 1.0, 1.0513, 1.1052)
    max_iterations: int = 256
    seed: int = 0

    least: ClassVar = {"num_steps": 20, "size": 2}

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> Iterator[dict[str, Any]]:
        """Set the exponents, and solve."""
        parts = []
        for exponent in (round(math.log(growth), 3) + 0.0 for growth in self.growths):
            given = cache(partial(self._given, exponent))
            parts += [Part(f"exponent {exponent:g}, {w}", partial(self._row, exponent, w, given)) for w in WAYS]
        yield from ledger.each(parts)

    def _drawn(self) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        draw = partial(torch.randn, generator=generator, dtype=torch.float64)
        weight = draw(self.size, self.size) / self.size**0.5
        return weight, draw(self.batch_size, self.size), 0.3 * draw(self.num_steps, self.batch_size, self.size)

    def _exponent(self, gain: float) -> tuple[float, float]:
        weight, state, xs = self._drawn()
        found = lyapunov(Orbit(Driven(weight, gain), state, xs), state, self.num_steps)
        return float(found.mean[:, 0].mean()), float(found.error[:, 0].max())

    def _given(self, exponent: float) -> dict[str, Any]:
        """Return a gain at which the largest exponent is this one, what it is then, and what a loop comes to."""
        low, high = 0.05, 6.0
        for _ in range(CUTS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._exponent(middle)[0] < exponent else (low, middle)
        gain = (low + high) / 2
        measured, error = self._exponent(gain)
        if not abs(measured - exponent) < 0.02:
            raise ValueError(
                f"no gain gives {self.size} features over {self.num_steps} updates a largest exponent of {exponent}, "
                f"{gain:.3g} gives {measured:.3g}: take other growths, or more features"
            )
        return {"gain": gain, "measured": measured, "error": error, "loop": self._run(gain, BPTT())}

    def _run(self, gain: float, estimator: Estimator) -> dict[str, Any]:
        weight, state, xs = self._drawn()
        cell = Driven(weight, gain)
        with FlopCounterMode(display=False) as counter:
            rollout = estimator(cell, state, None, self.num_steps, xs=xs, save="all")
            (gradient,) = torch.autograd.grad(rollout.outputs.sin().sum() / self.num_steps, cell.weight)
        found = {"states": rollout.outputs.detach(), "gradient": gradient, "flops": counter.get_total_flops()}
        return found | {"stats": rollout.stats}

    def _row(self, exponent: float, way: str, given: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
        known, how = given(), WAYS[way]
        loop = known["loop"]
        estimator = ParallelNewton(
            **how, tolerance=1e-12, max_iterations=self.max_iterations, on_unconverged="fallback", fallback=BPTT()
        )
        found = self._run(known["gain"], estimator)
        stats = found["stats"]
        depth = stats.iterations * (stats.levels + 1) + 1
        apart = float((found["states"] - loop["states"]).abs().max())
        error = float((found["gradient"] - loop["gradient"]).norm() / loop["gradient"].norm())
        numbers = self.num_steps * self.batch_size * self.size * (self.size if how["jacobian"] == "full" else 1)
        lost = stats.fallback
        row = {
            "exponent": exponent,
            "measured": known["measured"],
            "+-": known["error"],
            "gain": known["gain"],
            "method": way,
            "iterations": stats.iterations,
            "levels": stats.levels,
            "depth": depth,
            "speed-up": self.num_steps / depth,
            "residual": stats.residuals[-1],
            "apart": None if lost else apart,
            "met": not lost and apart <= SAME,
            "gradient": None if lost else error,
            "products": None if lost else found["flops"] / loop["flops"],
            "Jacobian MiB": numbers * 8 / 2**20,
            "updates": self.num_steps,
        }
        return [row]

    def figures(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Draw updates over depth against the exponent."""
        points = [plots.SpeedUp(r["method"], r["measured"], r["updates"], r["depth"], r["met"]) for r in rows]
        plots.save(plots.speed_ups(points), folder / "parallel-figure")

    def text(self, rows: list[dict[str, Any]]) -> str:
        """Say up to which exponent each way waits less than a loop."""
        return words(rows)
