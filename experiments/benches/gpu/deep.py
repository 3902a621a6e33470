"""A large cell applied hundreds of times, exactly; and what other libraries do of the same recursion."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.analysis.foreseen import foreseen
from loopgrad.experiments.benches import peers
from loopgrad.experiments.benches.cells import ResidualCell
from loopgrad.experiments.benches.gpu.cells import DeepCell
from loopgrad.experiments.benches.gpu.published import timed, without_check
from loopgrad.experiments.benches.gpu.row import row
from loopgrad.experiments.benches.gpu.sizes import Sizes
from loopgrad.experiments.benches.gpu.stopwatch import Stopwatch
from loopgrad.experiments.benches.recursion import Method, checkpoint_per_update, ours
from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    Estimator,
    ImplicitGradient,
    ReversibleBPTT,
    TorchDEQ,
    TruncatedBPTT,
)
from loopgrad.models import Leapfrog

Made = tuple[nn.Module, Tensor, Tensor]
OURS: dict[str, Estimator] = {
    "CheckpointedBPTT(1)": CheckpointedBPTT(1),
    "CheckpointedBPTT": CheckpointedBPTT(),
    "TruncatedBPTT(8)": TruncatedBPTT(num_steps=8),
    "BPTT": BPTT(),
}
TORCHS = "torch.utils.checkpoint per update"


def large(watch: Stopwatch, sizes: Sizes, rate: float) -> Iterator[dict[str, Any]]:
    """Measure a step of a large cell with many updates."""
    cell, z, x = _made(sizes, watch.device)
    count = sum(p.numel() for p in cell.parameters())
    what = f"{count / 1e6:.0f} M parameters, {sizes.deep_steps} updates, {sizes.deep_tokens} tokens"
    methods: dict[str, Method] = {name: ours(estimator) for name, estimator in OURS.items()}
    blind: dict[str, Method] = {name: ours(without_check(estimator)) for name, estimator in OURS.items()}
    for name in ("CheckpointedBPTT(1)", TORCHS, "TruncatedBPTT(8)", "CheckpointedBPTT", "BPTT"):
        if watch.left < 0:
            yield row("large", what, name, note="not measured: no time is left")
            continue
        told: dict[str, Any] = {"precision": "bfloat16"}
        if name in blind:
            step = partial(_step, blind[name], sizes.deep_steps)
            cpu = partial(_made, sizes, torch.device("cpu"))
            expected, flops = foreseen(cpu, lambda made, step=step: step(*made))
            told |= {"foreseen GiB": expected / 2**30, "floor": flops / rate}
            room = torch.cuda.get_device_properties(watch.device).total_memory if watch.device.type == "cuda" else 2**63
            if expected > room:
                yield row("large", what, name, **told, note="does not fit")
                continue
        method = methods.get(name) or checkpoint_per_update(use_reentrant=False)
        yield row("large", what, name, **told, **timed(watch, partial(_step, method, sizes.deep_steps, cell, z, x)))
        watch.forget()


def _made(sizes: Sizes, device: torch.device) -> Made:
    generator, before = torch.Generator(device).manual_seed(0), torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # a billion weights are made in it, and not cast
    try:
        with device:
            cell = DeepCell(sizes.deep_size, sizes.deep_layers, generator)
            x = torch.randn(1, sizes.deep_tokens, sizes.deep_size, generator=generator)
            return cell, torch.zeros_like(x), x.requires_grad_()
    finally:
        torch.set_default_dtype(before)


def _step(method: Method, num_steps: int, cell: nn.Module, z: Tensor, x: Tensor) -> None:
    state = method(cell, z, x, num_steps)
    cell.zero_grad(set_to_none=True)
    (state * state.roll(1, -1)).float().mean().backward()


def beside_peers(watch: Stopwatch, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Measure one recursion under estimators and under other libraries, gradients beside BPTT's."""
    generator = torch.Generator().manual_seed(0)
    cell = ResidualCell(sizes.exact_size, max(1, sizes.exact_size // 64), generator).to(watch.device)
    shape = (16, 64, sizes.exact_size)
    z, x = (torch.randn(shape, generator=generator).to(watch.device) for _ in range(2))
    steps, what = sizes.exact_steps, f"{sizes.exact_steps} updates of one block"
    wanted = _gradient(ours(BPTT()), cell, z, x, steps)
    methods: dict[str, Callable[[], Method]] = {
        "BPTT": lambda: ours(BPTT()),
        "CheckpointedBPTT": lambda: ours(CheckpointedBPTT()),
        TORCHS: lambda: checkpoint_per_update(use_reentrant=False),
        "ImplicitGradient": lambda: ours(ImplicitGradient()),
        "TorchDEQ": lambda: ours(TorchDEQ()),
        "ReversibleBPTT, leapfrog": lambda: _coupled(sizes),
        "revlib": lambda: _revlib(cell, steps),
    }
    for name, build in methods.items():
        told: dict[str, Any] = {"precision": "float32"}
        try:
            method = build()
            if name not in ("revlib", "ReversibleBPTT, leapfrog"):  # whose recursions are others
                pairs = list(zip(_gradient(method, cell, z, x, steps), wanted, strict=True))
                told["bits"] = all(torch.equal(*pair) for pair in pairs)
                told["error"] = max(float((a - b).norm() / b.norm()) for a, b in pairs)
            told |= timed(watch, partial(_step, method, steps, cell, z, x.clone().requires_grad_()))
        except Exception as error:  # that a library is missing, or cannot do it: the others go on
            told["note"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        yield row("peers", what, name, **told)


def _coupled(sizes: Sizes) -> Method:
    return lambda cell, z, x, num_steps: ReversibleBPTT()(Leapfrog(cell), z, x, num_steps).state


def _revlib(cell: nn.Module, num_steps: int) -> Method:
    run = peers.revlib("autograd_function")(cell, num_steps)
    return lambda _, z, x, __: run(z, x)


def _gradient(method: Method, cell: nn.Module, z: Tensor, x: Tensor, num_steps: int) -> list[Tensor]:
    cell.zero_grad(set_to_none=True)
    _step(method, num_steps, cell, z, x)
    return [p.grad.clone() for p in cell.parameters() if p.grad is not None]
