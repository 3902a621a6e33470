"""Exact gradients of one recursion: hand-written loop, BPTT, our checkpoints, torch.utils.checkpoint per update."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from loopgrad.analysis import cast, compare, gradients_of, interleaved, measure, median_ratio, reference
from loopgrad.gradients import BPTT, CheckpointedBPTT, Estimator, TruncatedBPTT
from loopgrad.models.blocks import AttentionBlock, Net
from loopgrad.models.cells import OneStreamCell

Method = Callable[[nn.Module, Any, Tensor, int], Any]


@dataclass(frozen=True)
class Recursion:
    """A net of one attention block applied over and over, as in a TRM with one stream.

    Args:
        hidden_size: Features.
        seq_len: Positions.
        batch_size: Samples.
        lengths: Numbers of updates.
        repeats: Timed rounds.
        num_threads: Of torch.
    """

    hidden_size: int = 128
    seq_len: int = 8
    batch_size: int = 16
    lengths: tuple[int, ...] = (64, 256)
    repeats: int = 7
    num_threads: int = 1

    def rows(self) -> list[dict[str, Any]]:
        """Measure every method at every length."""
        return [row for length in self.lengths for row in self._at(length)]

    def _at(self, length: int) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(0)
        heads = max(1, self.hidden_size // 32)
        cell = OneStreamCell(Net([AttentionBlock(self.hidden_size, heads, 4, generator)]), L_cycles=6)
        shape = (self.batch_size, self.seq_len, self.hidden_size)
        state = {"z_L": torch.randn(shape, generator=generator)}
        x = torch.randn(shape, generator=generator)

        def loss(method: Method, module: nn.Module) -> Tensor:
            dtype = next(module.parameters()).dtype
            last = method(module, cast(state, dtype), cast(x, dtype), length)
            return (last["z_L"] * last["z_L"].roll(1, 0)).mean()

        exact = reference(lambda module: loss(_hand_written, module), cell)
        bptt = gradients_of(lambda module: loss(_hand_written, module), cell)
        runs = {name: _bind(loss, method, cell) for name, method in METHODS.items()}
        seconds = interleaved(runs, repeats=self.repeats)
        rows = []
        for name, method in METHODS.items():
            gradient = gradients_of(lambda module, method=method: loss(method, module), cell)
            cost = measure(runs[name], cell=cell, exclude=[state, x], repeats=0, warmup=0)
            same = all(torch.equal(gradient[key], bptt[key]) for key in bptt)  # pyright: ignore[reportArgumentType]
            rows.append(
                {
                    "updates": length,
                    "method": name,
                    "time / loop": median_ratio(seconds[name], seconds["hand-written loop"]),
                    "saved MiB": cost.saved_bytes / 2**20,
                    "peak MiB": cost.peak_bytes / 2**20,
                    "evaluations": cost.cell_evaluations,
                    "vjps": cost.vjps,
                    "GFLOPs": cost.flops / 1e9,
                    "error / float64": compare(gradient, exact).relative_error,
                    "equals BPTT": "bit for bit" if same else "no",
                }
            )
        return rows


def _hand_written(cell: nn.Module, state: Any, inputs: Tensor, num_steps: int) -> Any:
    for step in range(num_steps):
        state = cell(state, inputs, step)
    return state


def _checkpoint_per_update(use_reentrant: bool) -> Method:
    def run(cell: nn.Module, state: Any, inputs: Tensor, num_steps: int) -> Any:
        z = state["z_L"]
        if use_reentrant:  # it gives no gradient at all unless an argument requires grad
            z = z.clone().requires_grad_()

        def update(z: Tensor, step: int) -> Tensor:
            return cell({"z_L": z}, inputs, step)["z_L"]

        for step in range(num_steps):
            z = checkpoint(update, z, step, use_reentrant=use_reentrant)
            assert isinstance(z, Tensor)
        return {"z_L": z}

    return run


def _ours(estimator: Estimator) -> Method:
    return lambda cell, state, inputs, num_steps: estimator(cell, state, inputs, num_steps).state


def _bind(loss: Callable[[Method, nn.Module], Tensor], method: Method, cell: nn.Module) -> Callable[[], Tensor]:
    return lambda: loss(method, cell)


METHODS: dict[str, Method] = {
    "hand-written loop": _hand_written,
    "BPTT": _ours(BPTT()),
    "CheckpointedBPTT": _ours(CheckpointedBPTT()),
    "torch checkpoint per update": _checkpoint_per_update(use_reentrant=False),
    "torch checkpoint, reentrant": _checkpoint_per_update(use_reentrant=True),
    "TruncatedBPTT(num_steps=2)": _ours(TruncatedBPTT(num_steps=2)),
}
