"""What fits: bytes per sample of a TRM training step under each estimator, and the batch that a memory then holds.

Bytes are counted operator by operator on tensors without data, of the step that a trainer takes: float32 weights under
autocast, with the flash kernel of attention. Exact for what operators allocate, blind to the scratch of an
accelerator's kernels and to its allocator's rounding.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from loopgrad.analysis.foreseen import foreseen_by_batch
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
from loopgrad.gradients import BPTT, CheckpointedBPTT, Estimator, ReversibleBPTT, TruncatedBPTT
from loopgrad.models import TRM
from loopgrad.models.losses import token_loss

# weights, AdamW's two moments and the moving average of the weights, in float32; gradients are in the measured peak
BYTES_PER_PARAMETER = 16
# without data there is nothing to verify
METHODS: dict[str, tuple[Estimator, str | None]] = {
    "BPTT": (BPTT(), None),
    "CheckpointedBPTT": (CheckpointedBPTT(verify="off"), None),
    "CheckpointedBPTT(1)": (CheckpointedBPTT(1, verify="off"), None),
    "last cycle (biased)": (TruncatedBPTT(num_cycles=1), None),
    "one step (biased)": (TruncatedBPTT(num_steps=2), None),
    "Reversible, damped": (ReversibleBPTT(verify="off"), "damped"),
    "Reversible, leapfrog": (ReversibleBPTT(verify="off"), "leapfrog"),
}


@dataclass(frozen=True)
class Fits(Bench):
    """One segment of the published TRM at several depths.

    Columns: n and T, L_cycles and H_cycles; MiB per sample, the slope of the peak from 4 samples to 8, forward and
    backward with loss; then the largest batch in each memory size (GB, 1e9 bytes), weights, gradients, optimiser and
    moving average counted. The reversible rows are other models (coupled ones) with as many evaluations of the net.

    Args:
        hidden_size: Features.
        num_layers: Blocks of the net.
        num_heads: Attention heads.
        seq_len: Tokens.
        mixer: "mlp" or "attention".
        L_cycles: Values of n.
        H_cycles: Values of T.
        memory: Sizes in GB.
        dtype: "bfloat16" for autocast to it, or "float32".
    """

    hidden_size: int = 512
    num_layers: int = 2
    num_heads: int = 8
    seq_len: int = 81
    mixer: str = "mlp"
    L_cycles: tuple[int, ...] = (6, 12)
    H_cycles: tuple[int, ...] = (3, 6)
    memory: tuple[int, ...] = (24, 48, 80, 141)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> list[dict[str, Any]]:
        """Count every method at every depth."""
        parts = [
            Part(f"n {n}, T {T}, {name}", partial(self._rows, n, T, name))
            for n in self.L_cycles
            for T in self.H_cycles
            for name in METHODS
        ]
        return list(ledger.each(parts))

    def _rows(self, n: int, T: int, name: str) -> list[dict[str, Any]]:
        found, _ = foreseen_by_batch(partial(self._made, n, T, name), partial(self._step, name))
        small, slope = found.at(4), (found.at(8) - found.at(4)) / 4
        with torch.device("meta"):
            model, _ = self._made(n, T, name, 1)
        fixed = small - 4 * slope + BYTES_PER_PARAMETER * sum(p.numel() for p in model.parameters())
        row: dict[str, Any] = {"n": n, "T": T, "method": name, "MiB per sample": slope / 2**20}
        row |= {f"{size} GB": max(0, int((size * 1e9 - fixed) // slope)) for size in self.memory}
        return [row]

    def _made(self, n: int, T: int, name: str, batch: int) -> tuple[TRM, Tensor]:
        coupling = METHODS[name][1]
        model = TRM(
            11,
            self.seq_len,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            H_cycles=T,
            L_cycles=n,
            mixer=self.mixer,
            coupling=coupling,
            coupling_rate=None if coupling != "leapfrog" else "1/64",
        )
        return model, torch.zeros(batch, self.seq_len, dtype=torch.int64)

    def _step(self, name: str, made: tuple[TRM, Tensor]) -> None:
        model, tokens = made
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bfloat16"):
            output = model(None, tokens, None, METHODS[name][0])
            loss = token_loss(output.logits, tokens) + output.q_halt.sum()
        loss.backward()
