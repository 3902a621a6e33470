"""Online gradients of a GRU that must remember: how near they are to the exact one, and what they carry and teach."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from loopgrad.analysis import measure, plots
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
from loopgrad.experiments.benches.online_recall import STARTS, Recall
from loopgrad.experiments.benches.online_words import words
from loopgrad.experiments.training.seeds import seed_for
from loopgrad.gradients import (
    BPTT,
    KFRTRL,
    RTRL,
    UORO,
    CheckpointedBPTT,
    DiagonalRTRL,
    Estimator,
    SnAp,
    TruncatedBPTT,
)

RANDOM = ("UORO", "KF-RTRL")
WINDOWS = {"truncated": "SnAp(1)", "truncated, KF-RTRL": "KF-RTRL"}  # whose bytes the window takes
NAMES = ("BPTT", "checkpointed", "RTRL", "SnAp(1)", "SnAp(2)", "diagonal", *RANDOM, *WINDOWS)
# on a GRU of torch, whose weights act on one feature each and whose recurrent matrices are full
AS = {"checkpointed": "BPTT", "RTRL": "BPTT", "SnAp(2)": "BPTT", "diagonal": "SnAp(1)"}
TAUGHT = tuple(name for name in NAMES if name not in AS)
LOOKS = 8  # at the held-out loss, at equal distances


@dataclass(frozen=True)
class Online(Bench):
    """Online gradients of a GRU with a loss at every update, beside the exact one and truncation.

    The network reads a bit per update and names it; `delay` updates after the first bit it is asked for that one.
    A row is an estimator at a delay and a start. start: of the weights, "uniform" as torch's own, or "chrono", with
    update gates that begin open to the past, see `Recall`. cosine and error: with the float64 gradient of BPTT, weights
    of the GRU, of weights as they begin and of the same after `updates` of BPTT; UORO and KF-RTRL: means over draws.
    saved, peak: KiB that the graph keeps and that are alive at once. evals: of the cell, with its recomputation and the
    probe of patterns. MFLOP: of matrix products. window: of truncated ones, in which as many update graphs fit as
    SnAp(1), or KF-RTRL, keeps bytes; all updates where those are fewer, which is BPTT.
    loss: of held-out questions after training under the estimator, mean, least and greatest over seeds (0.693 for
    knowing nothing), with Adam, the same data and first weights for all; at delays in `trained` alone. as: the
    row whose gradient this one's is on this network, and in whose place it is not trained again.

    Args:
        hidden_size: Features.
        batch_size: Sequences.
        delays: Updates between the first bit and the question.
        trained: Delays at which networks are trained, a quarter of an hour for 20 and a start.
        starts: Of the weights.
        updates: Of the weights, before gradients of later ones are compared.
        trainings: Updates of the weights in a training.
        learning_rate: Of Adam.
        draws: Of UORO and KF-RTRL.
        seeds: Of weights and data.
    """

    hidden_size: int = 16
    batch_size: int = 16
    delays: tuple[int, ...] = (10, 20, 100)
    trained: tuple[int, ...] = (20,)
    starts: tuple[str, ...] = STARTS
    updates: int = 120
    trainings: int = 320
    learning_rate: float = 0.01
    draws: int = 4
    seeds: tuple[int, ...] = (0, 1, 2)

    may_be_empty: ClassVar = frozenset({"trained"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [it for it in self.starts if it not in STARTS]:
            raise ValueError(f"starts={list(self.starts)} must hold {' or '.join(STARTS)} alone, not {unknown[0]!r}")

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> Iterator[dict[str, Any]]:
        """Measure, and train."""
        parts = []
        for start, delay in product(self.starts, self.delays):
            given = cache(partial(self._given, start, delay))
            row = partial(self._row, start, delay, given)
            parts += [Part(f"{start}, delay {delay}, {name}", partial(row, name)) for name in NAMES]
        yield from ledger.each(parts)

    def _given(self, start: str, delay: int) -> tuple[Tensor, Tensor, Recall, Recall, dict[str, int]]:
        """Return a batch, the network as it begins and after training, and the windows of truncated gradients."""
        fresh, generator = self._network(start, delay, self.seeds[0]), torch.Generator().manual_seed(1)
        x, labels = fresh.batch(self.batch_size, generator)
        learnt = self._trained(fresh, self.seeds[0], BPTT(), self.updates)[0]
        return x, labels, fresh, learnt, self._windows(fresh, x, labels)

    def _row(self, start: str, delay: int, given: Callable[[], Any], name: str) -> list[dict[str, Any]]:
        x, labels, fresh, learnt, windows = given()
        window = windows.get(name)
        row: dict[str, Any] = {"start": start, "delay": delay, "gradient": name, "window": window, "as": AS.get(name)}
        for network, when in ((fresh, "first"), (learnt, "later")):
            row |= self._agreement(network, x, labels, name, window, when)
        return [row | self._cost(fresh, x, labels, name, window) | self._taught(start, delay, name, window)]

    def figures(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Draw the held-out loss against FLOPs and against peak bytes."""
        curves = [
            plots.Learning(
                r["gradient"],
                f"{r['start']}, delay {r['delay']}",
                r["peak KiB"] * 2**10,
                [u * r["MFLOP"] * 1e6 for u in r["updates"]],
                r["losses"],
            )
            for r in rows
            if r["losses"]
        ]
        if curves:
            plots.save(plots.learning(curves), folder / "online-figure")

    def text(self, rows: list[dict[str, Any]]) -> str:
        """Say which online gradient ends below truncation that keeps no more."""
        return words(rows, {"SnAp(1)": "truncated", "UORO": "truncated", "KF-RTRL": "truncated, KF-RTRL"})

    def _network(self, start: str, delay: int, seed: int) -> Recall:
        generator = torch.Generator().manual_seed(seed_for("weights", seed))
        return Recall(self.hidden_size, delay, generator, start)

    def _windows(self, network: Recall, x: Tensor, labels: Tensor) -> dict[str, int]:
        """Return how many update graphs fit in the bytes that an online gradient saves."""
        per_update = _saved(network, x, labels, BPTT()) / len(x)
        carried = {it: _saved(network, x, labels, estimator_of(by, None, 0)) for it, by in WINDOWS.items()}
        return {it: max(1, min(len(x), int(kept / per_update))) for it, kept in carried.items()}

    def _agreement(
        self, network: Recall, x: Tensor, labels: Tensor, name: str, window: int | None, when: str
    ) -> dict[str, float]:
        exact = copy.deepcopy(network).double().gradient(x.double(), labels, BPTT())
        estimator = estimator_of(name, window, self.seeds[0])
        found = [network.gradient(x, labels, estimator).double() for _ in range(self.draws if name in RANDOM else 1)]
        cosines = [torch.cosine_similarity(gradient, exact, dim=0) for gradient in found]
        errors = [(gradient - exact).norm() / exact.norm() for gradient in found]
        pairs = ((f"cosine {when}", cosines), (f"error {when}", errors))
        return {key: float(torch.stack(values).mean()) for key, values in pairs}

    def _cost(self, network: Recall, x: Tensor, labels: Tensor, name: str, window: int | None) -> dict[str, Any]:
        estimator = estimator_of(name, window, self.seeds[0])
        cost = measure(
            lambda: network.losses(x, labels, estimator)[0], exclude=[network, x, labels], repeats=0, warmup=0
        )
        loss, stats = network.losses(x, labels, estimator)
        torch.autograd.grad(loss, list(network.parameters()))  # some count their evaluations in backward
        kib = {"saved KiB": cost.saved_bytes / 2**10, "peak KiB": cost.peak_bytes / 2**10}
        return kib | {"evals": stats.cell_evaluations, "MFLOP": cost.flops / 1e6}

    def _taught(self, start: str, delay: int, name: str, window: int | None) -> dict[str, Any]:
        """Return the held-out losses of trainings, or nothing at a delay without."""
        if delay not in self.trained or name not in TAUGHT:
            return {"loss": None, "least": None, "greatest": None, "updates": [], "losses": []}
        curves = [
            self._trained(
                self._network(start, delay, seed),
                seed,
                estimator_of(name, window, seed_for("estimator", seed)),
                self.trainings,
            )[1]
            for seed in self.seeds
        ]
        ends = [curve[-1] for curve in curves]
        ends = {"loss": sum(ends) / len(ends), "least": min(ends), "greatest": max(ends)}
        return ends | {"updates": sorted(_looks(self.trainings)), "losses": curves}

    def _trained(self, first: Recall, seed: int, estimator: Estimator, updates: int) -> tuple[Recall, list[float]]:
        """Return a copy of a network after its training, and the held-out losses on the way."""
        network, data = copy.deepcopy(first), torch.Generator().manual_seed(seed_for("data", seed))
        held_out = network.batch(256, torch.Generator().manual_seed(2**32 + seed))
        optimiser = torch.optim.Adam(network.parameters(), self.learning_rate)
        looks, losses = _looks(updates), []
        for step in range(updates + 1):
            if step in looks:
                with torch.no_grad():
                    losses.append(float(network.losses(*held_out, BPTT(), question=True)[0]))
            if step < updates:
                loss, _ = network.losses(*network.batch(self.batch_size, data), estimator)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimiser.step()
        return network, losses


def _looks(updates: int) -> set[int]:
    return {updates * i // LOOKS for i in range(LOOKS + 1)}


def estimator_of(name: str, window: int | None, seed: int) -> Estimator:
    """Return a new estimator of a row."""
    makers: dict[str, Callable[[], Estimator]] = {
        "BPTT": BPTT,
        "checkpointed": CheckpointedBPTT,
        "RTRL": RTRL,
        "SnAp(1)": lambda: SnAp(1),
        "SnAp(2)": lambda: SnAp(2),
        "diagonal": DiagonalRTRL,
        "UORO": lambda: UORO(seed),
        "KF-RTRL": lambda: KFRTRL(seed),
    }
    return makers[name]() if window is None else TruncatedBPTT(num_steps=window)


def _saved(network: Recall, x: Tensor, labels: Tensor, estimator: Estimator) -> int:
    run = measure(lambda: network.losses(x, labels, estimator)[0], exclude=[network, x, labels], repeats=0, warmup=0)
    return run.saved_bytes
