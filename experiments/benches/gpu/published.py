"""A training step of the published models under every estimator: seconds, bytes, and the floor of both."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loopgrad.analysis.foreseen import foreseen
from loopgrad.experiments.benches.gpu.row import row
from loopgrad.experiments.benches.gpu.sizes import Sizes
from loopgrad.experiments.benches.gpu.stopwatch import Stopwatch
from loopgrad.experiments.benches.trm import TRMStep, official_step
from loopgrad.gradients import BPTT, CheckpointedBPTT, Estimator, ImplicitGradient, ReversibleBPTT, TruncatedBPTT
from loopgrad.models import HRM, TRM
from loopgrad.models.losses import token_loss
from loopgrad.models.recursive import RecursiveModel

VOCABULARY = 11
ESTIMATORS: dict[str, Estimator] = {
    "TruncatedBPTT, last cycle": TruncatedBPTT(num_cycles=1),
    "TruncatedBPTT, last two updates": TruncatedBPTT(num_steps=2),
    "CheckpointedBPTT(1)": CheckpointedBPTT(1),
    "CheckpointedBPTT": CheckpointedBPTT(),
    "BPTT": BPTT(),
    "ImplicitGradient": ImplicitGradient(),
    "ReversibleBPTT, damped": ReversibleBPTT(),
}
DEEP = ("CheckpointedBPTT(1)", "TruncatedBPTT, last cycle", "BPTT")
COMPILED = ("TruncatedBPTT, last cycle", "CheckpointedBPTT(1)", "CheckpointedBPTT", "BPTT")


@dataclass(frozen=True)
class Published:
    """A model as published, and how much of it.

    Attributes:
        name: Of the model: TRM or HRM.
        tokens: Positions; an MLP mixes up to 100, attention more.
        L_cycles: Updates in a cycle.
        H_cycles: Cycles.
        compiled: Whether the nets inside the cell are compiled.
    """

    name: str
    tokens: int
    L_cycles: int
    H_cycles: int
    compiled: bool = False

    @property
    def what(self) -> str:
        """What it is called in a row."""
        how = ", compiled" if self.compiled else ""
        return f"{self.name}, {self.tokens} tokens, n={self.L_cycles} T={self.H_cycles}{how}"

    def model(self, sizes: Sizes, coupling: str | None) -> RecursiveModel:
        """Return it, on the CPU."""
        mixer = "mlp" if self.tokens <= 100 and self.name == "TRM" else "attention"
        given: dict[str, Any] = {"hidden_size": sizes.hidden_size, "num_heads": sizes.num_heads, "mixer": mixer}
        given |= {"L_cycles": self.L_cycles, "H_cycles": self.H_cycles, "coupling": coupling}
        if self.name == "TRM":
            return TRM(VOCABULARY, self.tokens, **given)
        return HRM(VOCABULARY, self.tokens, H_layers=sizes.hrm_layers, L_layers=sizes.hrm_layers, **given)


def steps(
    watch: Stopwatch, sizes: Sizes, what: Published, names: Sequence[str], rate: float, official: str | None = None
) -> Iterator[dict[str, Any]]:
    """Measure a step of a model under some estimators, each at the published batch or the largest half that fits."""
    for name in names:
        if watch.left < 0:
            yield row("step", what.what, name, note="not measured: no time is left")
            continue
        yield _measured(watch, sizes, what, name, rate)
        watch.forget()
    if official is not None and what.name == "TRM" and not what.compiled and watch.left > 0:
        yield _officials(watch, sizes, what, official)


def _measured(watch: Stopwatch, sizes: Sizes, what: Published, name: str, rate: float) -> dict[str, Any]:
    coupling = "damped" if name.startswith("Reversible") else None
    batch, expected, told = sizes.batch, None, {"precision": "bf16 autocast"}
    if name != "ImplicitGradient":  # which asks its state what to do, and so needs data
        batch, expected, flops = _that_fits(watch, sizes, what, name, coupling)
        told |= {"foreseen GiB": expected / 2**30, "floor": flops / rate}
    made = _made(sizes, what, coupling, batch)
    model, tokens = made[0].to(watch.device), made[1].to(watch.device)
    if what.compiled:
        for net in model.cell.children():
            net.compile()
    told |= timed(watch, partial(_step, ESTIMATORS[name], (model, tokens)))
    return row("step", f"{what.what}, batch {batch}", name, **told)


def _that_fits(
    watch: Stopwatch, sizes: Sizes, what: Published, name: str, coupling: str | None
) -> tuple[int, int, int]:
    """Return the largest half of the published batch whose foreseen bytes fit, these bytes, and FLOPs."""
    room = torch.cuda.get_device_properties(watch.device).total_memory if watch.device.type == "cuda" else 2**63
    batch = sizes.batch
    while True:
        expected, flops = foreseen(
            partial(_made, sizes, what, coupling, batch), partial(_step, without_check(ESTIMATORS[name]))
        )
        if expected < 0.9 * room or batch == 1:
            return batch, expected, flops
        batch = max(1, min(batch // 2, int(0.9 * batch * room / expected)))


def without_check(estimator: Any) -> Estimator:
    """Return an estimator that compares no values, for tensors that have none."""
    return replace(estimator, verify="off") if hasattr(estimator, "verify") else estimator


def _made(sizes: Sizes, what: Published, coupling: str | None, batch: int) -> tuple[RecursiveModel, Tensor]:
    return what.model(sizes, coupling), torch.zeros(batch, what.tokens, dtype=torch.int64)


def _step(estimator: Estimator, made: tuple[RecursiveModel, Tensor]) -> None:
    model, tokens = made
    with torch.autocast(tokens.device.type, torch.bfloat16):
        output = model(None, tokens, None, estimator)
        loss = token_loss(output.logits, tokens) + output.q_halt.sum()
    model.zero_grad(set_to_none=True)
    loss.backward()


def timed(watch: Stopwatch, step: Callable[[], Any]) -> dict[str, Any]:
    """Return the seconds and bytes of a step, or why there are none."""
    try:
        seconds, peak = watch.timed(step, 5)
        return {"seconds": seconds, "peak GiB": peak / 2**30}
    except torch.OutOfMemoryError:
        return {"note": "out of memory"}
    except Exception as error:  # a compiler's, say: one row must not cost the others
        return {"note": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"}


def _officials(watch: Stopwatch, sizes: Sizes, what: Published, path: str) -> dict[str, Any]:
    """Measure the official code's step, its last loop differentiated."""
    given = {"hidden_size": sizes.hidden_size, "num_heads": sizes.num_heads, "seq_len": what.tokens}
    given |= {"batch_size": sizes.batch, "H_cycles": what.H_cycles, "L_cycles": what.L_cycles}
    step = TRMStep(**given, mixer="mlp" if what.tokens <= 100 else "attention", official_path=path)  # pyright: ignore
    told = {"precision": "bfloat16 activations"}
    try:
        tokens = torch.zeros(sizes.batch, what.tokens, dtype=torch.int64, device=watch.device)
        run, _ = official_step(step, Path(path), tokens, tokens, "bfloat16")
    except (ImportError, ValueError) as error:
        return row("step", what.what, "official code", note=str(error).splitlines()[0][:160])
    return row(
        "step", f"{what.what}, batch {sizes.batch}", "official code", **told, **timed(watch, lambda: run().backward())
    )
