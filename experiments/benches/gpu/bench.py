"""The bench of an accelerator: each part's rows as they are measured, the most important first."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch

from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.gpu.deep import beside_peers, large
from loopgrad.experiments.benches.gpu.exactness import exactness
from loopgrad.experiments.benches.gpu.learning import learning
from loopgrad.experiments.benches.gpu.published import COMPILED, DEEP, ESTIMATORS, Published, steps
from loopgrad.experiments.benches.gpu.row import row
from loopgrad.experiments.benches.gpu.sizes import FULL, TINY, Sizes
from loopgrad.experiments.benches.gpu.stopwatch import Stopwatch
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
from loopgrad.experiments.trainer.hyperparameters import device_of


@dataclass(frozen=True)
class Accelerator(Bench):
    """All that is worth knowing of an accelerator, in one command of at most nine minutes.

    In this order: exact estimators beside BPTT in float32 and bf16; a step of the published TRM under all estimators,
    and of deeper ones under exact gradients; a cell of a billion parameters with 256 updates; HRM, TRM at 916 tokens,
    compiled nets; other libraries; a training of 9x9 Sudoku under three gradients. The record holds each row as soon as
    it is measured. What runs out of memory, or of time, is a row too.

    Columns: seconds, median of a forward and backward pass; floor, the seconds that its counted FLOPs take at the rate
    of a matrix product; peak and foreseen GiB, measured, and counted beforehand; bits and error, of gradients beside
    BPTT's. On a CPU peak bytes are counted operator by operator.

    Args:
        size: "full", as published, or "tiny", to try the command anywhere.
        device: "auto" for CUDA where there is one, else a torch device.
        seconds: Within which everything is begun.
        training_seconds: How many of them are for the training at the end.
        official_path: A checkout of github.com/SamsungSAILMontreal/TinyRecursiveModels, whose step is measured too.
    """

    size: Literal["full", "tiny"] = "full"
    device: str = "auto"
    seconds: int = 520
    training_seconds: int = 240
    official_path: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size not in ("full", "tiny"):
            raise ValueError(f"size={self.size} must be full or tiny")
        if self.training_seconds >= self.seconds:
            raise ValueError(f"training_seconds={self.training_seconds} must be below seconds={self.seconds}")

    def place(self) -> torch.device:
        """Return the device that is measured on."""
        return device_of(self.device)

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> Iterator[dict[str, Any]]:
        """Measure, part by part; of those that are kept no time is taken."""
        began = time.monotonic()
        tiny = self.size == "tiny"
        watch = Stopwatch(self.place(), self.seconds - self.training_seconds)

        def dated(measure: Callable[[], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
            for found in measure():
                yield {**found, "at": time.monotonic() - began}

        parts = self._parts(watch, TINY if tiny else FULL, tiny)
        yield from ledger.each([Part(name, partial(dated, measure)) for name, measure in parts])

    def _parts(self, watch: Stopwatch, sizes: Sizes, tiny: bool) -> Iterator[tuple[str, Any]]:
        rate = cache(partial(watch.rate, torch.bfloat16, sizes.rate_size))

        def of_steps(names: Sequence[str], what: Published, official: str | None = None) -> tuple[str, Any]:
            measure = lambda: steps(watch, sizes, what, names, rate(), official)  # noqa: E731
            return what.what, measure

        yield "machine", lambda: iter([_machine(watch.device, rate())])
        yield "exactness", lambda: exactness(watch, sizes)
        short, n = sizes.tokens[0], 2 if tiny else 6
        yield of_steps(list(ESTIMATORS), Published("TRM", short, n, 3), self.official_path)
        for cycles in (3,) if tiny else (3, 6):
            yield of_steps(DEEP, Published("TRM", short, 2 * n, cycles))
        yield "a billion parameters", lambda: large(watch, sizes, rate())
        yield of_steps(list(ESTIMATORS), Published("HRM", short, 2, 2))
        yield of_steps(COMPILED, Published("TRM", short, n, 3, compiled=True))
        for tokens in sizes.tokens[1:]:
            for model, L_cycles, H_cycles in (("TRM", 4, 3), ("HRM", 2, 2)):
                yield of_steps(list(ESTIMATORS), Published(model, tokens, L_cycles, H_cycles))
        yield "other libraries", lambda: beside_peers(watch, sizes)
        yield "training", lambda: learning(Stopwatch(watch.device, watch.left + self.training_seconds), sizes, tiny)


def _machine(device: torch.device, rate: float) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    note = f"matrix product in bfloat16: {rate / 1e12:.3g} TFLOP/s"
    return row("machine", name, f"torch {torch.__version__}", note=note)
