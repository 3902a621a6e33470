"""Online gradients of a GRU that must remember: how near they are to the exact one, and what they carry and teach."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loopgrad.analysis import measure, plots
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
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
    Stationary,
    TruncatedBPTT,
)

NAMES = ("BPTT", "checkpointed", "RTRL", "SnAp(1)", "SnAp(2)", "diagonal", "UORO", "KF-RTRL", "truncated")
RANDOM = ("UORO", "KF-RTRL")
# of the others the gradient is that of BPTT or, on a GRU whose weights act on one feature each, of SnAp(1)
TAUGHT = ("BPTT", "SnAp(1)", "UORO", "KF-RTRL", "truncated")
ASKED = 8  # updates at the end of a sequence that are asked for what came first
LOOKS = 4  # at the held-out loss, at equal distances


class Recall(nn.Module):
    """A GRU that reads bits, and a head that names the one just read, and after the delay the first.

    Args:
        hidden_size: Features.
        delay: Updates after which the first bit is asked for.
        generator: Source of the weights.
    """

    def __init__(self, hidden_size: int, delay: int, generator: torch.Generator):
        super().__init__()
        self.delay, self.gru, self.head = delay, nn.GRUCell(3, hidden_size), nn.Linear(hidden_size, 2)
        with torch.no_grad():
            for weight in self.parameters():
                weight.uniform_(-(hidden_size**-0.5), hidden_size**-0.5, generator=generator)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return inputs (updates, batch, 3), which are the first bit, a fresh bit and the question, and labels."""
        steps = self.delay + ASKED
        bits, first = (torch.randint(2, shape, generator=generator) for shape in ((steps, size), (size,)))
        asked = torch.arange(steps) >= self.delay
        x = torch.zeros(steps, size, 3, dtype=self.head.weight.dtype)
        x[0, :, 0] = 2 * first.to(x.dtype) - 1
        x[:, :, 1] = 2 * bits.to(x.dtype) - 1
        x[:, :, 2] = asked.to(x.dtype).unsqueeze(1)
        return x, torch.where(asked.unsqueeze(1), first, bits)

    def losses(self, x: Tensor, labels: Tensor, estimator: Estimator, question: bool = False) -> tuple[Tensor, Any]:
        """Return the mean cross entropy of all updates, or of those after the question alone, and the stats."""
        cell = Stationary(lambda z, x: self.gru(x, z), parameters=self.gru)
        weights = torch.full((len(x),), 1 / len(x)).to(x)
        if question:
            weights = torch.where(torch.arange(len(x)) >= self.delay, 1 / ASKED, 0.0).to(x)

        def loss(z: Tensor, inputs: Any, x: Tensor, step: int) -> Tensor:
            return weights[step] * F.cross_entropy(self.head(z), labels[step], reduction="none")

        start = x.new_zeros(x.shape[1], self.gru.hidden_size)
        rollout = estimator(cell, start, None, len(x), xs=x, readout=loss, save="sum")
        return rollout.outputs.mean(), rollout.stats

    def gradient(self, x: Tensor, labels: Tensor, estimator: Estimator) -> Tensor:
        """Return the gradient by the weights of the GRU; that of the head is exact under all."""
        found = torch.autograd.grad(self.losses(x, labels, estimator)[0], list(self.gru.parameters()))
        return torch.cat([gradient.flatten() for gradient in found])


@dataclass(frozen=True)
class Online(Bench):
    """Online gradients of a GRU with a loss at every update, beside the exact one and truncation.

    The network reads a bit per update and names it; `delay` updates after the first bit it is asked for that one.
    A row is an estimator at a delay. cosine and error: with the float64 gradient of BPTT, weights of the GRU, of
    weights as they begin and of the same after `updates` of BPTT; UORO and KF-RTRL: means over draws. saved, peak: KiB
    that the graph keeps and that are alive at once. evals: of the cell, its recomputation and the probe of patterns
    included. MFLOP: of matrix products. window: of the truncated one, in which as many update graphs fit as SnAp(1)
    keeps bytes.
    loss: of held-out questions after training under the estimator, mean, least and greatest over seeds (0.693 for
    knowing nothing), with Adam, the same data and first weights for all; at delays in `trained` alone, and of those
    whose gradient is no other one's.

    Args:
        hidden_size: Features.
        batch_size: Sequences.
        delays: Updates between the first bit and the question.
        trained: Delays at which networks are trained, minutes each; none by default.
        updates: Of the weights.
        learning_rate: Of Adam.
        draws: Of UORO and KF-RTRL.
        seeds: Of weights and data.
    """

    hidden_size: int = 16
    batch_size: int = 16
    delays: tuple[int, ...] = (10, 30, 100)
    trained: tuple[int, ...] = ()
    updates: int = 120
    learning_rate: float = 0.03
    draws: int = 4
    seeds: tuple[int, ...] = (0, 1, 2)

    may_be_empty: ClassVar = frozenset({"trained"})

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> Iterator[dict[str, Any]]:
        """Measure, and train."""
        parts = []
        for delay in self.delays:
            given = cache(partial(self._given, delay))
            parts += [Part(f"delay {delay}, {name}", partial(self._row, delay, name, given)) for name in NAMES]
        yield from ledger.each(parts)

    def _given(self, delay: int) -> tuple[Tensor, Tensor, Recall, Recall, int]:
        """Return a batch, the network as it begins and after training, and the window of the truncated gradient."""
        fresh, generator = self._network(delay, self.seeds[0]), torch.Generator().manual_seed(1)
        x, labels = fresh.batch(self.batch_size, generator)
        learnt = self._trained(delay, self.seeds[0], BPTT(), self.updates)[0]
        return x, labels, fresh, learnt, self._window(fresh, x, labels)

    def _row(self, delay: int, name: str, given: Callable[[], Any]) -> list[dict[str, Any]]:
        x, labels, fresh, learnt, window = given()
        row: dict[str, Any] = {"delay": delay, "gradient": name, "window": window if name == "truncated" else None}
        for network, when in ((fresh, "first"), (learnt, "later")):
            row |= self._agreement(network, x, labels, name, window, when)
        return [row | self._cost(fresh, x, labels, name, window) | self._taught(delay, name, window)]

    def figures(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Draw the held-out loss against FLOPs and against bytes."""
        curves = [
            plots.Learning(
                r["gradient"],
                f"delay {r['delay']}",
                r["peak KiB"] * 2**10,
                [u * r["MFLOP"] * 1e6 for u in r["updates"]],
                r["losses"],
            )
            for r in rows
            if r["losses"]
        ]
        if curves:
            plots.save(plots.learning(curves), folder / "online-figure")

    def _network(self, delay: int, seed: int) -> Recall:
        return Recall(self.hidden_size, delay, torch.Generator().manual_seed(seed_for("weights", seed)))

    def _window(self, network: Recall, x: Tensor, labels: Tensor) -> int:
        """Return how many update graphs fit in the bytes that SnAp(1) saves."""
        carried = _saved(network, x, labels, SnAp(1))
        per_update = _saved(network, x, labels, BPTT()) / len(x)
        return max(1, min(len(x), int(carried / per_update)))

    def _agreement(
        self, network: Recall, x: Tensor, labels: Tensor, name: str, window: int, when: str
    ) -> dict[str, float]:
        exact = copy.deepcopy(network).double().gradient(x.double(), labels, BPTT())
        estimator = estimator_of(name, window, self.seeds[0])
        found = [network.gradient(x, labels, estimator).double() for _ in range(self.draws if name in RANDOM else 1)]
        cosines = [torch.cosine_similarity(gradient, exact, dim=0) for gradient in found]
        errors = [(gradient - exact).norm() / exact.norm() for gradient in found]
        pairs = ((f"cosine {when}", cosines), (f"error {when}", errors))
        return {key: float(torch.stack(values).mean()) for key, values in pairs}

    def _cost(self, network: Recall, x: Tensor, labels: Tensor, name: str, window: int) -> dict[str, Any]:
        estimator = estimator_of(name, window, self.seeds[0])
        cost = measure(
            lambda: network.losses(x, labels, estimator)[0], exclude=[network, x, labels], repeats=0, warmup=0
        )
        loss, stats = network.losses(x, labels, estimator)
        torch.autograd.grad(loss, list(network.parameters()))  # some count their evaluations in backward
        kib = {"saved KiB": cost.saved_bytes / 2**10, "peak KiB": cost.peak_bytes / 2**10}
        return kib | {"evals": stats.cell_evaluations, "MFLOP": cost.flops / 1e6}

    def _taught(self, delay: int, name: str, window: int) -> dict[str, Any]:
        """Return the held-out losses of trainings, or nothing at a delay without."""
        if delay not in self.trained or name not in TAUGHT:
            return {"loss": None, "least": None, "greatest": None, "updates": [], "losses": []}
        curves = [
            self._trained(delay, seed, estimator_of(name, window, seed_for("estimator", seed)), self.updates)[1]
            for seed in self.seeds
        ]
        means = [sum(values) / len(values) for values in zip(*curves, strict=True)]
        ends = [curve[-1] for curve in curves]
        ends = {"loss": means[-1], "least": min(ends), "greatest": max(ends)}
        return ends | {"updates": sorted(_looks(self.updates)), "losses": means}

    def _trained(self, delay: int, seed: int, estimator: Estimator, updates: int) -> tuple[Recall, list[float]]:
        """Return a network after its training, and the held-out losses on the way."""
        network, data = self._network(delay, seed), torch.Generator().manual_seed(seed_for("data", seed))
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


def estimator_of(name: str, window: int, seed: int) -> Estimator:
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
        "truncated": lambda: TruncatedBPTT(num_steps=window),
    }
    return makers[name]()


def _saved(network: Recall, x: Tensor, labels: Tensor, estimator: Estimator) -> int:
    run = measure(lambda: network.losses(x, labels, estimator)[0], exclude=[network, x, labels], repeats=0, warmup=0)
    return run.saved_bytes
