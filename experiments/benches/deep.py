"""Big and deep: the widest cell that trains through many updates in a memory, and a cell of a billion weights.

Bytes are counted operator by operator on tensors without data (see `plan`), and on this device beside the bytes that
real steps take.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loopgrad.analysis import plan
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.gpu.cells import DeepCell
from loopgrad.experiments.benches.gpu.stopwatch import Stopwatch
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
from loopgrad.gradients import BPTT, CheckpointedBPTT, Estimator, ReversibleBPTT, TruncatedBPTT
from loopgrad.models import Leapfrog

# beside a cell in bfloat16, whose gradients are in the counted peak: its weights, and in float32 the weights that the
# optimiser keeps and AdamW's two moments, seven times two bytes
COPIES = 7
GRAIN = 128  # features of an attention head: widths are multiples of it
LEAPFROG = "ReversibleBPTT, leapfrog"
METHODS: dict[str, Estimator] = {
    "BPTT": BPTT(),
    "CheckpointedBPTT": CheckpointedBPTT(),
    "CheckpointedBPTT(1)": CheckpointedBPTT(1),
    LEAPFROG: ReversibleBPTT(),
    "TruncatedBPTT(8)": TruncatedBPTT(num_steps=8),
}


@dataclass(frozen=True)
class Deep(Bench):
    """The bytes of a training step of residual blocks (attention and SwiGLU) that are applied again and again.

    Rows of three parts. "widest": the greatest width that fits each memory (GB, 1e9 bytes) under each estimator, with
    weights, gradients and AdamW's moments. "billion": a cell of the size of a language model, and what it takes.
    "measured": steps on this device at small widths, foreseen bytes beside those that were taken; of these weights and
    optimiser are no part. The reversible rows are of another cell, the coupled one.

    Args:
        num_steps: Updates of the recursion.
        tokens: Positions of the one sequence of a micro-batch.
        layers: Blocks of the cell.
        memory: Sizes in GB.
        model_size: Features of the cell of a language model's size.
        model_layers: Its blocks.
        sizes: Widths at which steps are measured, multiples of 128.
        measured_steps: Updates of these.
    """

    num_steps: int = 256
    tokens: int = 512
    layers: int = 2
    memory: tuple[int, ...] = (80, 141)
    model_size: int = 2048
    model_layers: int = 24
    sizes: tuple[int, ...] = (128, 256, 384)
    measured_steps: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values in (("model_size", [self.model_size]), ("sizes", self.sizes)):
            if any(it % GRAIN for it in values):
                raise ValueError(f"{name}={getattr(self, name)} must be multiples of {GRAIN}, the features of a head")

    def place(self) -> torch.device:
        """Return the accelerator where there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> Iterator[dict[str, Any]]:
        """Count, then measure."""
        parts = [Part(f"widest, {name}", partial(self._widest, name), len(self.memory)) for name in METHODS]
        parts += [Part(f"billion, {name}", partial(self._billion, name)) for name in METHODS]
        watch = Stopwatch(self.place(), math.inf)
        parts += [
            Part(f"measured, {name}, width {size}", partial(self._measured, watch, name, size))
            for size in self.sizes
            for name in METHODS
        ]
        yield from ledger.each(parts)

    def _billion(self, name: str) -> Iterator[dict[str, Any]]:
        needed = self._training(name, self.model_size, self.model_layers)
        yield self._row("billion", name, self.model_size, self.model_layers, needed)

    def _widest(self, name: str) -> Iterator[dict[str, Any]]:
        """Find the greatest width by the polynomial that bytes are of it, and by counting there and one head wider."""
        counted = {heads: self._training(name, heads * GRAIN, self.layers) for heads in (1, 2, 3)}

        def needed(heads: int) -> int:
            if heads not in counted:
                counted[heads] = self._training(name, heads * GRAIN, self.layers)
            return counted[heads]

        law = np.polynomial.Polynomial.fit([1, 2, 3], [counted[1], counted[2], counted[3]], 2)
        for memory in self.memory:
            room = memory * 1e9
            if counted[1] > room:
                yield self._row("widest", name, 0, self.layers, counted[1], memory)
                continue
            roots = (law - room).roots()
            heads = max(1, int(max(root.real for root in roots)))
            while heads > 1 and needed(heads) > room:
                heads -= 1
            while needed(heads + 1) <= room:
                heads += 1
            yield self._row("widest", name, heads * GRAIN, self.layers, needed(heads), memory)

    def _training(self, name: str, size: int, layers: int) -> int:
        return self._foreseen(name, size, layers, self.num_steps, COPIES)

    def _foreseen(self, name: str, size: int, layers: int, num_steps: int, copies: int) -> int:
        like = torch.zeros(self.tokens, size, dtype=torch.bfloat16)
        make = partial(_cell, name, size, layers, num_steps, torch.device("cpu"))
        given: dict[str, Any] = {"num_steps": num_steps, "memory_budget": 2**60, "batch_size": 1, "copies": copies}
        (row,) = plan(make, like, like, estimators={name: METHODS[name]}, **given)
        if row.bytes is None:
            raise ValueError(f"{name} cannot be foreseen: {row.remark}")
        return row.bytes

    def _measured(self, watch: Stopwatch, name: str, size: int) -> Iterator[dict[str, Any]]:
        steps = self.measured_steps
        cell = _cell(name, size, self.layers, steps, watch.device)
        generator = torch.Generator(watch.device).manual_seed(0)
        x = torch.randn(1, self.tokens, size, generator=generator, device=watch.device).bfloat16().requires_grad_()
        z = torch.zeros_like(x, requires_grad=True)
        _, taken = watch.timed(partial(_step, METHODS[name], steps, cell, z, x), 1)
        watch.forget()
        expected = self._foreseen(name, size, self.layers, steps, 0)
        row = self._row("measured", name, size, self.layers, expected)
        yield row | {"updates": steps, "measured GB": taken / 1e9, "measured / foreseen": taken / expected}

    def _row(self, part: str, name: str, size: int, layers: int, needed: int, memory: int | None = None) -> Any:
        return {
            "part": part,
            "method": name,
            "memory GB": memory,
            "updates": self.num_steps,
            "width": size,
            "M weights": _parameters(size, layers) / 1e6,
            "foreseen GB": needed / 1e9,
            "measured GB": None,
            "measured / foreseen": None,
        }


def _parameters(size: int, layers: int) -> int:
    return 10 * size**2 * layers  # attention 4, SwiGLU 6


def _cell(name: str, size: int, layers: int, num_steps: int, device: torch.device) -> nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # a billion weights are made in it, and not cast
    try:
        with device:
            cell = DeepCell(size, layers, torch.Generator(device).manual_seed(0))
    finally:
        torch.set_default_dtype(before)
    return Leapfrog(cell, scale=1 / num_steps) if name == LEAPFROG else cell


def _step(estimator: Estimator, num_steps: int, cell: nn.Module, z: Tensor, x: Tensor) -> None:
    state = estimator(cell, z, x, num_steps).state
    for tensor in (z, x, *cell.parameters()):
        tensor.grad = None
    state.float().square().mean().backward()
