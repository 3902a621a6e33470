"""Exact gradients of one recursion: hand-written loop, BPTT, our checkpoints, torch.utils.checkpoint per update."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from loopgrad.analysis import cast, compare_gradients, interleaved, measure, median_ratio, reference_gradients
from loopgrad.experiments.benches.cells import ResidualCell
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
from loopgrad.gradients import BPTT, CheckpointedBPTT, Estimator, TruncatedBPTT

Method = Callable[[nn.Module, Any, Tensor, int], Any]


@dataclass(frozen=True)
class Recursion(Bench):
    """A block of attention and SwiGLU applied over and over.

    Columns: time, CPU time over that of a hand-written loop; saved and peak bytes, evaluations of the cell, vjps and
    FLOPs of a forward and backward pass; error, relative to the float64 gradient; bits, beside the loop's gradient. The
    torch rows are torch.utils.checkpoint per update, non-reentrant and reentrant.

    Args:
        hidden_size: Features.
        seq_len: Positions.
        batch_size: Samples.
        lengths: Numbers of updates.
    """

    hidden_size: int = 128
    seq_len: int = 8
    batch_size: int = 16
    lengths: tuple[int, ...] = (64, 256)
    repeats: int = field(default=7, kw_only=True)

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> list[dict[str, Any]]:
        """Measure every method at every length."""
        parts = [Part(f"{length} updates", partial(self._at, length), len(METHODS)) for length in self.lengths]
        return list(ledger.each(parts))

    def _at(self, length: int) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(0)
        cell = ResidualCell(self.hidden_size, max(1, self.hidden_size // 32), generator)
        shape = (self.batch_size, self.seq_len, self.hidden_size)
        state, x = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)

        def loss(method: Method, module: nn.Module) -> Tensor:
            dtype = next(module.parameters()).dtype
            last = method(module, cast(state, dtype), cast(x, dtype), length)
            return (last * last.roll(1, 0)).mean()

        exact = reference_gradients(lambda module: loss(_hand_written, module), cell)
        runs = {name: partial(loss, method, cell) for name, method in METHODS.items()}
        seconds = interleaved(runs, repeats=self.repeats, clock=time.process_time)
        loop = _gradient(runs["loop"], cell)
        rows = []
        for name, run in runs.items():
            gradient = _gradient(run, cell)
            cost = measure(run, cell=cell, exclude=[state, x], repeats=0, warmup=0)
            same = all(torch.equal(gradient[key], loop[key]) for key in loop)
            rows.append(
                {
                    "updates": length,
                    "method": name,
                    "time": median_ratio(seconds[name], seconds["loop"]),
                    "saved MiB": cost.saved_bytes / 2**20,
                    "peak MiB": cost.peak_bytes / 2**20,
                    "evals": cost.cell_evaluations,
                    "vjps": cost.vjps,
                    "GFLOPs": cost.flops / 1e9,
                    "error": compare_gradients(gradient, exact).relative_error,
                    "bits": "equal" if same else "differ",
                }
            )
        return rows


def _gradient(run: Callable[[], Tensor], cell: nn.Module) -> dict[str, Tensor]:
    """Return gradients by backward(): reentrant checkpoints do not work with autograd.grad."""
    cell.zero_grad()
    run().backward()
    found = {name: p.grad for name, p in cell.named_parameters() if p.grad is not None}
    cell.zero_grad()
    return found


def _hand_written(cell: nn.Module, state: Any, inputs: Tensor, num_steps: int) -> Any:
    for step in range(num_steps):
        state = cell(state, inputs, step)
    return state


def checkpoint_per_update(use_reentrant: bool) -> Method:
    """Return the recursion with each update in torch.utils.checkpoint."""

    def run(cell: nn.Module, state: Any, inputs: Tensor, num_steps: int) -> Any:
        # reentrant ones give no gradient at all unless an argument requires grad
        z: Any = state.clone().requires_grad_() if use_reentrant else state
        for step in range(num_steps):
            z = checkpoint(cell, z, inputs, step, use_reentrant=use_reentrant)
        return z

    return run


def ours(estimator: Estimator) -> Method:
    """Return the recursion under an estimator."""
    return lambda cell, state, inputs, num_steps: estimator(cell, state, inputs, num_steps).state


METHODS: dict[str, Method] = {
    "loop": _hand_written,
    "BPTT": ours(BPTT()),
    "CheckpointedBPTT": ours(CheckpointedBPTT()),
    "torch checkpoint": checkpoint_per_update(use_reentrant=False),
    "torch reentrant": checkpoint_per_update(use_reentrant=True),
    "TruncatedBPTT(2)": ours(TruncatedBPTT(num_steps=2)),
}
