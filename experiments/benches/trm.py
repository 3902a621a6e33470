"""One TRM training step (forward, loss, backward) under our estimators, beside the official code if it is at hand."""

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from loopgrad.analysis import interleaved, measure, median_ratio
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
from loopgrad.gradients import BPTT, CheckpointedBPTT, Estimator, TruncatedBPTT
from loopgrad.models import TRM
from loopgrad.models.losses import stablemax_cross_entropy, token_loss

VOCABULARY = 11


@dataclass(frozen=True)
class TRMStep(Bench):
    """A training step on random tokens, from the initial state, without puzzle embeddings, in float32.

    Column time: CPU time over that of the first row.

    Args:
        hidden_size: Features.
        num_layers: Blocks.
        num_heads: Attention heads.
        seq_len: Tokens.
        batch_size: Samples.
        H_cycles: Cycles.
        L_cycles: Updates of z_L in a cycle.
        mixer: Mixer of positions.
        official_path: A checkout of github.com/SamsungSAILMontreal/TinyRecursiveModels, whose class is then timed in
            turn with ours; it needs einops and pydantic.
    """

    hidden_size: int = 128
    num_layers: int = 2
    num_heads: int = 4
    seq_len: int = 81
    batch_size: int = 16
    H_cycles: int = 3
    L_cycles: int = 6
    mixer: Literal["attention", "mlp"] = "attention"
    official_path: str | None = None
    repeats: int = field(default=9, kw_only=True)

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> list[dict[str, Any]]:
        """Measure; the first row is what the others' times are divided by."""
        return list(ledger.each([Part("a step under each estimator", self._measured, 4)]))

    def _measured(self) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(0)
        inputs, labels = torch.randint(2, VOCABULARY, (2, self.batch_size, self.seq_len), generator=generator)
        runs: dict[str, tuple[Callable[[], Tensor], list[Any]]] = {}
        if self.official_path is not None:
            runs["official, last loop"] = official_step(self, Path(self.official_path), inputs, labels)
        estimators = {
            "last cycle": TruncatedBPTT(num_cycles=1),
            "BPTT": BPTT(),
            "CheckpointedBPTT": CheckpointedBPTT(),
            "CheckpointedBPTT(1)": CheckpointedBPTT(schedule=1),
        }
        model = TRM(
            VOCABULARY,
            self.seq_len,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            H_cycles=self.H_cycles,
            L_cycles=self.L_cycles,
            mixer=self.mixer,
        )
        state = model.initial_state(self.batch_size)

        def ours(estimator: Estimator) -> Tensor:
            return token_loss(model(state, inputs, None, estimator).logits, labels, stablemax_cross_entropy)

        for name, estimator in estimators.items():
            runs[name] = (partial(ours, estimator), [model, state, inputs, labels])
        timed = {name: run for name, (run, _) in runs.items()}
        seconds = interleaved(timed, repeats=self.repeats, clock=time.process_time)
        first = next(iter(runs))
        rows = []
        for name, (run, owned) in runs.items():
            cost = measure(run, exclude=owned, repeats=0, warmup=0)
            rows.append(
                {
                    "step": name,
                    "time": median_ratio(seconds[name], seconds[first]),
                    "saved MiB": cost.saved_bytes / 2**20,
                    "peak MiB": cost.peak_bytes / 2**20,
                    "GFLOPs": cost.flops / 1e9,
                }
            )
        return rows


def official_step(
    sizes: TRMStep, path: Path, inputs: Tensor, labels: Tensor, forward_dtype: str = "float32"
) -> tuple[Callable[[], Tensor], list[Any]]:
    """Return the official code's forward pass and loss, on the device of the inputs, and what it holds.

    Raises:
        ValueError: The path is no checkout of it.
        ImportError: A package that it needs is missing.
    """
    with _importable(path):
        classes = importlib.import_module("models.recursive_reasoning.trm")
        losses = importlib.import_module("models.losses")
    arch = {
        "batch_size": sizes.batch_size,
        "seq_len": sizes.seq_len,
        "puzzle_emb_ndim": 0,
        "puzzle_emb_len": 0,
        "num_puzzle_identifiers": 1,
        "vocab_size": VOCABULARY,
        "H_cycles": sizes.H_cycles,
        "L_cycles": sizes.L_cycles,
        "H_layers": 0,
        "L_layers": sizes.num_layers,
        "hidden_size": sizes.hidden_size,
        "expansion": 4,
        "num_heads": sizes.num_heads,
        "pos_encodings": "none" if sizes.mixer == "mlp" else "rope",
        "mlp_t": sizes.mixer == "mlp",
        "halt_max_steps": 16,
        "halt_exploration_prob": 0.1,
        "forward_dtype": forward_dtype,
    }
    with inputs.device:
        model: nn.Module = classes.TinyRecursiveReasoningModel_ACTV1(arch).inner
        batch = {"inputs": inputs, "puzzle_identifiers": torch.zeros(sizes.batch_size, dtype=torch.int64)}
        everyone = torch.ones(sizes.batch_size, dtype=torch.bool)
        carry: Any = model.reset_carry(everyone, model.empty_carry(sizes.batch_size))  # pyright: ignore

    def run() -> Tensor:
        _, logits, _ = model(carry, batch)
        return losses.stablemax_cross_entropy(logits, labels).mean(-1).mean()

    return run, [model, [carry.z_H, carry.z_L], inputs, labels]


@contextmanager
def _importable(path: Path) -> Iterator[None]:
    if not (path / "models" / "recursive_reasoning" / "trm.py").is_file():
        raise ValueError(
            f"official_path={path} is no checkout of TinyRecursiveModels: it has no models/recursive_reasoning"
        )
    sys.path.insert(0, str(path.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(path.resolve()))
