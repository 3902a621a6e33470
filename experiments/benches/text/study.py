"""Training a language model of characters under every estimator: held-out loss against FLOPs and against bytes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loopgrad.analysis import plots
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger
from loopgrad.experiments.benches.rates import best_rates
from loopgrad.experiments.benches.text import words
from loopgrad.experiments.benches.text.sizes import BANDS, EXACT, FORWARD, TWINS, Sizes
from loopgrad.experiments.benches.text.training import Curve, Training, cost, train
from loopgrad.experiments.processes import at_once


@dataclass(frozen=True)
class LanguageModels(Sizes):
    """Held-out loss of a GRU that reads one character of a tale per update, trained under each estimator.

    The tales (`loopgrad.experiments.tasks.tales`) say words again that were said 9 to 1894 characters before. Every
    estimator sees the same windows in the same order from the same weights, for as many updates and as many characters
    in each, with Adam and a gradient norm of at most 1; a window starts from a state of zeros. The loss is summed in
    the readout. The learning rate is each one's own: that of `learning_rates` with the least held-out loss at the first
    length, on a seed and a text that nothing else uses.

    A row is an estimator at one of `lengths`. Columns: held-out loss per character at the end, mean and range over
    seeds; the same of recalls alone, by characters since the first mention (log 4 = 1.386 for knowing the four words
    and no more); cosine with the gradient of BPTT, at the end of its own training; calls of the cell, FLOPs (of matrix
    products), saved and peak bytes of a forward and a backward pass. Held-out windows have the greatest of the lengths
    and are the same for all. The record holds the curves.

    "checkpointed" and "coupled reversible" have the gradients of "BPTT" and "coupled BPTT", bit for bit, which is seen
    at the first and at the last weights of each seed; one training then serves both. The coupled recursion is another
    model: the same GRU, from the same weights, with a momentum. Random truncation: the most peak bytes of five draws.
    "forward state" is trained at `forward_lengths` alone and has its cost everywhere.
    """

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> list[dict[str, Any]]:
        """Choose learning rates, train, and measure."""
        workers = at_once(1000, self.workers, torch.device("cpu"), self.num_threads)
        rates = self._learning_rates(workers, ledger)
        places = [(length, name) for length in self.lengths for name in self.names(length)]
        jobs = {
            (*place, seed): Training(self, *place, rates[place[1]], seed) for place in places for seed in self.seeds
        }
        left_out = [job for job in jobs.values() if job.name == FORWARD and job.length not in self.forward_lengths]
        own = [job for job in jobs.values() if job.name not in TWINS and job not in left_out]
        # the longest first, so that none is waited for at the end
        own.sort(key=lambda job: -job.length)
        curves: dict[Training, Curve] = dict(zip(own, ledger.mapped(train, own, workers, Curve), strict=True))
        apart = []
        for job in jobs.values():
            if job.name in TWINS:
                other = jobs[job.length, TWINS[job.name], job.seed]
                if job.name in curves[other].same:
                    curves[job] = curves[other]
                else:
                    apart.append(job)
        curves |= zip(apart, ledger.mapped(train, apart, workers, Curve), strict=True)
        return [self._row([jobs[(*place, seed)] for seed in self.seeds], jobs, curves) for place in places]

    def figures(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Draw loss against FLOPs and against bytes."""
        curves = [
            plots.Learning(
                row["estimator"],
                f"{row['length']} characters",
                row["peak MiB"] * 2**20,
                [updates * row["GFLOP"] * 1e9 for updates in row["updates"]],
                row["losses"],
            )
            for row in rows
            if row["losses"]
        ]
        plots.save(plots.learning(curves), folder / "text-figure")

    def text(self, rows: list[dict[str, Any]]) -> str:
        """Say what to use."""
        return words.words(rows)

    def _learning_rates(self, workers: int, ledger: Ledger) -> dict[str, float]:
        """Return the rate of each estimator, by trainings at the first length."""
        length, every = self.lengths[0], self.names(max(self.lengths))
        if len(self.learning_rates) == 1:
            return dict.fromkeys(every, self.learning_rates[0])
        tried = [
            Training(self, length, name, rate, max(self.seeds) + 1, data_seed=1)
            for name in self.names(length)
            for rate in self.learning_rates
            if name not in TWINS
        ]
        ended = zip(tried, ledger.mapped(train, tried, workers, Curve), strict=True)
        found = best_rates((job.name, job.learning_rate, curve.losses[-1]) for job, curve in ended)
        # a window that reaches over the first length is BPTT there
        return {name: found.get(TWINS.get(name, name), found[EXACT]) for name in every}

    def _row(self, jobs: list[Training], every: dict[Any, Training], curves: dict[Training, Curve]) -> dict[str, Any]:
        job, mine = jobs[0], [curves[it] for it in jobs if it in curves]
        spent, last = cost(job), [curve.losses[-1] for curve in mine]
        cosines = [curves[every[job.length, EXACT, it.seed]].cosines.get(job.name, math.nan) for it in jobs]
        bands = list(zip(*(curve.recalled for curve in mine), strict=True))
        edges = ["<", *BANDS]
        return {
            "length": job.length,
            "estimator": job.name,
            "lr": job.learning_rate,
            "loss": _mean(last),
            "seeds": f"{min(last):.3g}-{max(last):.3g}" if last else "not trained",
            **{_band(i): _mean(bands[i]) if bands else math.nan for i in range(len(edges))},
            "cosine": _mean(cosines),
            "evals": spent.cell_evaluations,
            "GFLOP": spent.flops / 1e9,
            "saved MiB": spent.saved_bytes / 2**20,
            "peak MiB": spent.peak_bytes / 2**20,
            "updates": job.looks,
            "losses": [curve.losses for curve in mine],
            "recalled": [curve.recalled for curve in mine],
        }


def _band(i: int) -> str:
    low, high = (0, *BANDS)[i], (*BANDS, None)[i]
    return f"from {low}" if high is None else f"below {high}" if not low else f"{low}-{high - 1}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
