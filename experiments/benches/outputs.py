"""A loss at every step of a recurrent network: by hand, ours, and torch.utils.checkpoint over chunks."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from loopgrad.analysis import interleaved, measure, median_ratio
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
from loopgrad.gradients import BPTT, CheckpointedBPTT, Estimator, ReversibleBPTT, Stationary, TruncatedBPTT
from loopgrad.models import Leapfrog

CLASSES = 10


class Network(nn.Module):
    """A GRU that reads an encoded sequence, and a head."""

    def __init__(self, size: int, generator: torch.Generator):
        super().__init__()
        self.encoder, self.gru, self.head = nn.Linear(size, size), nn.GRUCell(size, size), nn.Linear(size, CLASSES)
        with torch.no_grad():
            for weight in self.parameters():
                weight.normal_(0, size**-0.5, generator=generator)

    def losses(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy of each sample."""
        return F.cross_entropy(self.head(z), labels, reduction="none")


@dataclass(frozen=True)
class Data:
    """A sequence (updates, batch, size), with a label per update and sample."""

    x: Tensor
    labels: Tensor


Method = Callable[[Network, Data, str], Tensor]


@dataclass(frozen=True)
class Outputs(Bench):
    """A GRU with a trainable encoder in front and a cross entropy after every update.

    Columns: save, whether losses are summed or all of them kept; time, CPU time over that of a loop by hand over
    `unbind`; saved and peak bytes, the encoded sequence included; error, relative to the float64 gradient of BPTT
    through the same recursion; bits, beside the loop's gradient. The torch row cuts the sequence into sqrt(T) chunks,
    each in torch.utils.checkpoint. The last row is another model: the same net in a leapfrog.

    Args:
        size: Features of input and state.
        batch_size: Samples.
        lengths: Numbers of updates.
    """

    size: int = 64
    batch_size: int = 16
    lengths: tuple[int, ...] = (256, 1024)
    repeats: int = field(default=7, kw_only=True)

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> list[dict[str, Any]]:
        """Measure every method at every length, for the sum of the losses and for all of them."""
        parts = [
            Part(f"{length} updates, {save}", partial(self._at, length, save), len(METHODS))
            for length in self.lengths
            for save in ("sum", "all")
        ]
        return list(ledger.each(parts))

    def _at(self, length: int, save: str) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(0)
        network = Network(self.size, generator)
        x = torch.randn(length, self.batch_size, self.size, generator=generator)
        labels = torch.randint(CLASSES, (length, self.batch_size), generator=generator)
        data, wide = Data(x, labels), Data(x.double(), labels)
        runs = {name: partial(method, network, data, save) for name, (method, _) in METHODS.items()}
        seconds = interleaved(runs, repeats=self.repeats, clock=time.process_time)
        loop, rows = _gradient(runs["loop"], network), []
        for name, (_, reference) in METHODS.items():
            gradient = _gradient(runs[name], network)
            exact_network = copy.deepcopy(network).double()
            exact = _gradient(partial(reference, exact_network, wide, save), exact_network)
            cost = measure(runs[name], exclude=[network, x, labels], repeats=0, warmup=0)
            rows.append(
                {
                    "updates": length,
                    "save": save,
                    "method": name,
                    "time": median_ratio(seconds[name], seconds["loop"]),
                    "saved MiB": cost.saved_bytes / 2**20,
                    "peak MiB": cost.peak_bytes / 2**20,
                    "error": float((gradient.double() - exact).norm() / exact.norm()),
                    "bits": "equal" if torch.equal(gradient, loop) else "differ",
                }
            )
        return rows


def _gradient(run: Callable[[], Tensor], network: Network) -> Tensor:
    found = torch.autograd.grad(run(), list(network.parameters()))
    return torch.cat([gradient.flatten() for gradient in found])


def _kept(losses: list[Tensor], save: str) -> Tensor:
    """Return a loss that weights the updates where all losses are kept, so that the two forms are not the same."""
    if save == "sum":
        return sum(losses[1:], losses[0]).mean() / len(losses)
    return _weighed(torch.stack(losses))


def _weighed(losses: Tensor) -> Tensor:
    return (torch.linspace(0.5, 1.5, len(losses), dtype=losses.dtype) @ losses).mean() / len(losses)


def _by_hand(network: Network, data: Data, save: str) -> Tensor:
    z, losses = data.x.new_zeros(data.x.shape[1:]), []
    for x, labels in zip(network.encoder(data.x).unbind(0), data.labels, strict=True):
        z = network.gru(x, z)
        losses.append(network.losses(z, labels))
    return _kept(losses, save)


def _in_chunks(network: Network, data: Data, save: str) -> Tensor:
    def chunk(z: Tensor, xs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        losses = []
        for x, own in zip(xs.unbind(0), labels, strict=True):
            z = network.gru(x, z)
            losses.append(network.losses(z, own))
        return z, *losses

    z, every, size = data.x.new_zeros(data.x.shape[1:]), [], max(1, int(len(data.x) ** 0.5))
    pairs = zip(network.encoder(data.x).split(size), data.labels.split(size), strict=True)
    for xs, labels in pairs:
        z, *losses = checkpoint(chunk, z, xs, labels, use_reentrant=False)  # pyright: ignore[reportGeneralTypeIssues]
        every += losses
    return _kept(every, save)


def _ours(estimator: Estimator, coupled: bool = False) -> Method:
    def run(network: Network, data: Data, save: str) -> Tensor:
        steps, z = len(data.x), data.x.new_zeros(data.x.shape[1:])
        cell: nn.Module = Stationary(lambda z, x: network.gru(x, z), parameters=network.gru)
        if coupled:
            cell = Leapfrog(cell, scale=1 / steps, arithmetic="exact" if z.dtype == torch.float32 else "float64")
        given = {"xs": network.encoder(data.x), "readout": lambda z, _, x, step: network.losses(z, data.labels[step])}
        outputs = estimator(cell, z, None, steps, **given, save=save).outputs
        return outputs.mean() / steps if save == "sum" else _weighed(outputs)

    return run


# each with what its error is relative to
METHODS: dict[str, tuple[Method, Method]] = {
    "loop": (_by_hand, _by_hand),
    "BPTT": (_ours(BPTT()), _by_hand),
    "CheckpointedBPTT": (_ours(CheckpointedBPTT()), _by_hand),
    "torch checkpoint": (_in_chunks, _by_hand),
    "TruncatedBPTT(16)": (_ours(TruncatedBPTT(16)), _by_hand),
    "ReversibleBPTT": (_ours(ReversibleBPTT(), coupled=True), _ours(BPTT(), coupled=True)),
}
