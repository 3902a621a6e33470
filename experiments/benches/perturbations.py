"""What an evaluation of `LowRankES` takes beside a plain forward pass, by how many run at once."""

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.analysis import interleaved, measure, median_ratio
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
from loopgrad.gradients import LowRankES
from loopgrad.models.recurrent import LayersCell


@dataclass(frozen=True)
class Perturbations(Bench):
    """A GRU cell with an input per update, whose weights are perturbed at a low rank, some perturbations at once.

    Columns: perturbed, what is moved beside the weights; time, CPU time of one evaluation (the forward pass of the
    estimate by its evaluations; and with backward, in which perturbations are drawn again), over that of a plain loop
    without a graph on the same batch, taken in turn; peak bytes of the estimate.

    Args:
        hidden_sizes: Features of input and state, for each of `batch_sizes`.
        batch_sizes: Samples.
        chunks: Perturbations at once.
        population: Perturbations, and at least one chunk.
        updates: Of the recursion.
        rank: Of the perturbations.
    """

    hidden_sizes: tuple[int, ...] = (256, 32, 16)
    batch_sizes: tuple[int, ...] = (64, 64, 16)
    chunks: tuple[int, ...] = (1, 8, 64, 512)
    population: int = 64
    updates: int = 4
    rank: int = 1
    repeats: int = field(default=3, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("hidden_sizes", "batch_sizes", "chunks"):  # a configuration gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()
        if len(self.hidden_sizes) != len(self.batch_sizes):
            raise ValueError("hidden_sizes and batch_sizes must be as many: one of each per row")

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> list[dict[str, Any]]:
        """Measure every width, with inputs that stay and that are perturbed, at every chunk."""
        parts = [
            Part(f"{size} features, {moved}", partial(self._at, size, batch, moved), len(self.chunks))
            for size, batch in zip(self.hidden_sizes, self.batch_sizes, strict=True)
            for moved in ("weights", "weights and inputs")
        ]
        return list(ledger.each(parts))

    def _at(self, size: int, batch: int, moved: str) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(0)
        cell = LayersCell(nn.GRUCell, size, 1, generator)
        z, xs = {"h_1": torch.zeros(batch, size)}, torch.randn(self.updates, batch, size, generator=generator)
        xs.requires_grad_(moved != "weights")
        many = max(1, self.population // 4)  # so that the clock sees something

        def plain() -> None:
            with torch.no_grad():
                for _ in range(many):
                    state = z
                    for step in range(self.updates):
                        state = cell(state, xs[step], step)

        def estimate(chunk: int) -> Tensor:
            estimator = LowRankES(self.rank, self._drawn(chunk), chunk=chunk, seed=0)
            return estimator(cell, z, None, self.updates, xs=xs).state["h_1"].sum()

        def forward(chunk: int) -> None:
            estimate(chunk)

        runs: dict[str, Any] = {"plain": plain}
        for chunk in self.chunks:
            runs |= {f"forward {chunk}": partial(forward, chunk), f"both {chunk}": partial(estimate, chunk)}
        seconds = interleaved(runs, repeats=self.repeats, clock=time.process_time)

        def ratio(kind: str, chunk: int) -> float:
            return many / (2 * self._drawn(chunk) + 1) * median_ratio(seconds[f"{kind} {chunk}"], seconds["plain"])

        return [
            {
                "hidden": size,
                "batch": batch,
                "perturbed": moved,
                "chunk": chunk,
                "time": ratio("forward", chunk),
                "with backward": ratio("both", chunk),
                "peak MiB": measure(partial(estimate, chunk), exclude=[cell, z, xs], repeats=0, warmup=0).peak_bytes
                / 2**20,
            }
            for chunk in self.chunks
        ]

    def _drawn(self, chunk: int) -> int:
        return max(self.population, chunk)
