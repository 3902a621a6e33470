"""Exact estimators beside BPTT on the device: gradients equal to rounding, bit for bit where that is claimed."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.experiments.benches.cells import ResidualCell
from loopgrad.experiments.benches.gpu.row import row
from loopgrad.experiments.benches.gpu.sizes import Sizes
from loopgrad.experiments.benches.gpu.stopwatch import Stopwatch
from loopgrad.gradients import BPTT, CheckpointedBPTT, Estimator, ReversibleBPTT
from loopgrad.models import Damped, Leapfrog, Momentum

PRECISIONS = ("float32", "bf16 autocast", "bfloat16")
CHECKPOINTED: dict[str, Estimator] = {
    "CheckpointedBPTT": CheckpointedBPTT(),
    "CheckpointedBPTT(1)": CheckpointedBPTT(1),
    "CheckpointedBPTT, binomial 4": CheckpointedBPTT("binomial", num_snapshots=4),
    "CheckpointedBPTT, 2 GiB": CheckpointedBPTT(memory_budget="2GiB"),
    "CheckpointedBPTT, offload": CheckpointedBPTT(offload="cpu"),
}
COUPLINGS = {"damped": Damped, "leapfrog": Leapfrog, "momentum": Momentum}


def exactness(watch: Stopwatch, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Compare every exact estimator, in every precision."""
    for precision in PRECISIONS:
        plain = _cell(watch, sizes, precision)
        yield from _beside_bptt(watch, sizes, precision, "plain cell", plain, {"BPTT again": BPTT(), **CHECKPOINTED})
        for name, coupling in COUPLINGS.items():
            if precision == "bfloat16" and name != "damped":
                continue  # the exact grid of these couplings needs more bits than a bfloat16 state has
            cell = coupling(_cell(watch, sizes, precision))
            yield from _beside_bptt(watch, sizes, precision, name, cell, {"ReversibleBPTT": ReversibleBPTT()})


def _cell(watch: Stopwatch, sizes: Sizes, precision: str) -> nn.Module:
    cell = ResidualCell(sizes.exact_size, max(1, sizes.exact_size // 64), torch.Generator().manual_seed(0))
    return cell.to(watch.device, torch.bfloat16 if precision == "bfloat16" else torch.float32)


def _beside_bptt(
    watch: Stopwatch, sizes: Sizes, precision: str, what: str, cell: nn.Module, estimators: dict[str, Estimator]
) -> Iterator[dict[str, Any]]:
    wanted = _gradients(watch, sizes, precision, cell, BPTT())
    for name, estimator in estimators.items():
        told: dict[str, Any]
        try:
            found = _gradients(watch, sizes, precision, cell, estimator)
            told = {"bits": all(map(torch.equal, found, wanted)), "error": max(map(_error, found, wanted))}
        except (RuntimeError, ValueError, TypeError) as error:  # what it refuses, or memory that is lacking
            told = {"note": f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"}
        yield row("exactness", what, name, precision=precision, **told)


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-300))


def _gradients(watch: Stopwatch, sizes: Sizes, precision: str, cell: nn.Module, estimator: Estimator) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    z, x = (torch.randn(4, 16, sizes.exact_size, generator=generator).to(watch.device, dtype) for _ in range(2))
    x.requires_grad_()
    with torch.autocast(watch.device.type, torch.bfloat16, enabled=precision == "bf16 autocast"):
        state = estimator(cell, z, x, sizes.exact_steps).state
    loss = (state * state.roll(1, 0)).float().mean()
    return list(torch.autograd.grad(loss, [*cell.parameters(), x]))
