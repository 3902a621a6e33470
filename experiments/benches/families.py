"""Every family of gradients on the same cells: error, bytes, FLOPs and sequential depth, and which rows others beat."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from loopgrad.analysis import compare_gradients, gradients_of, measure, plots, reference_gradients
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.families_words import words
from loopgrad.experiments.benches.family_cells import CELLS, Problem
from loopgrad.experiments.benches.family_rows import CONTENDERS, Contender
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
from loopgrad.gradients import BPTT
from loopgrad.gradients.implicit_verdict import Unconverged


@dataclass(frozen=True)
class Families(Bench):
    """Gradients of three untrained recursions beside those of BPTT in float64, in every family.

    The cells are a block of attention and SwiGLU, a GRU with an input at every update, and an equilibrium cell, which
    contracts. Columns: cosine and error, of one gradient, or of random estimators the root of the mean square over
    `draws`; saved and peak bytes and FLOPs of a forward and backward pass, a reversible row beside its own model;
    depth, updates that have to run one after the other, forward and back: the runs of a population and the tangents of
    a forward gradient are side by side, and so are all updates under `ParallelNewton`, whose depth is steps times an
    evaluation and the levels of a scan; it is not measured where the Jacobians of a block would fill hundreds of MiB.
    note: why a row has no numbers. `beaten by` names a row of the same cell and length that errs no more, holds
    no more at the peak and computes no more, and is better in one.

    Args:
        size: Features.
        batch_size: Samples.
        lengths: Numbers of updates.
        draws: Gradients of a random estimator.
        seed: Seed of weights, states and inputs.
    """

    size: int = 32
    batch_size: int = 8
    lengths: tuple[int, ...] = (8, 32, 128, 512)
    draws: int = 4
    seed: int = 0

    least: ClassVar = {"size": 8}

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> Iterator[dict[str, Any]]:
        """Measure every family on every cell at every length."""
        parts = [
            Part(f"{cell}, {length} updates", partial(self._at, cell, length), len(CONTENDERS))
            for cell in CELLS
            for length in self.lengths
        ]
        yield from ledger.each(parts)

    def _at(self, cell: str, length: int) -> list[dict[str, Any]]:
        found = []
        for name, contender in CONTENDERS.items():
            problem = Problem(cell, self.size, self.batch_size, length, self.seed, contender.couple)
            if contender.fits(problem):
                found.append({"cell": cell, "updates": length, "estimator": name} | self._measured(problem, contender))
        return [row | {"beaten by": beaten_by(row, found)} for row in found]

    def _measured(self, problem: Problem, contender: Contender) -> dict[str, Any]:
        exact = reference_gradients(partial(problem.loss, estimator=BPTT()), problem.cell)
        try:
            return self._numbers(problem, contender, exact) | {"note": ""}
        except Unconverged:
            kind = contender.estimator(self.seed).kind
            return {"kind": kind} | dict.fromkeys(NUMBERS) | {"note": "its steps ran out"}

    def _numbers(self, problem: Problem, contender: Contender, exact: dict[str, Tensor | None]) -> dict[str, Any]:
        draws, errors, cosines = self.draws if contender.random else 1, [], []
        for draw in range(draws):
            estimator = contender.estimator(self.seed + draw)
            agreement = compare_gradients(gradients_of(partial(problem.loss, estimator=estimator), problem.cell), exact)
            errors.append(agreement.relative_error)
            cosines.append(agreement.cosine)
        estimator = contender.estimator(self.seed)
        stats: list[Any] = []

        def run() -> Tensor:
            loss, found = problem.run(problem.cell, estimator)
            stats[:] = [found]
            return loss

        cost = measure(run, cell=problem.cell, exclude=[problem.cell, *problem.given], repeats=0, warmup=0)
        return {
            "kind": estimator.kind,
            "cosine": sum(cosines) / draws,
            "error": (sum(error**2 for error in errors) / draws) ** 0.5,
            "saved MiB": cost.saved_bytes / 2**20,
            "peak MiB": cost.peak_bytes / 2**20,
            "GFLOPs": cost.flops / 1e9,
            "depth": contender.depth(cost.cell_evaluations or 0, cost.vjps or 0, stats[0]),
        }

    def figures(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Draw error against peak memory for the least and the greatest length."""
        ends = {min(self.lengths), max(self.lengths)}
        prices = [
            plots.Price(row["estimator"], row["peak MiB"] * 2**20, row["error"], f"{row['cell']}, {row['updates']}")
            for row in rows
            if row["updates"] in ends and row["error"] is not None
        ]
        plots.save(plots.error_and_memory(prices, most=2), folder / "families-figure")

    def text(self, rows: list[dict[str, Any]]) -> str:
        """Say which rows others beat."""
        return words(rows)


NUMBERS = "cosine", "error", "saved MiB", "peak MiB", "GFLOPs", "depth"
SAME = 1e-4  # an error below is that of the arithmetic


def beaten_by(row: dict[str, Any], others: list[dict[str, Any]]) -> str:
    """Return the first row that errs, holds and computes no more, and is better in one; "" if there is none."""
    if row["error"] is None:
        return ""
    for other in (it for it in others if it["error"] is not None):
        pairs = [(_price(other)[i], _price(row)[i]) for i in range(3)]
        if all(theirs <= own for theirs, own in pairs) and any(theirs < own for theirs, own in pairs):
            return str(other["estimator"])
    return ""


def _price(row: dict[str, Any]) -> tuple[float, float, float]:
    error = row["error"] if row["error"] == row["error"] else float("inf")
    return (0.0 if error < SAME else error), row["peak MiB"], row["GFLOPs"]
