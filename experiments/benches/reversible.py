"""One reversible recursion, additive or damped, by every way of computing its gradient, and what each of them breaks.

revlib and memcnn are optional; RevDEQ's update is written here as published, for both precisions of its state.
"""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from loopgrad.analysis import compare_gradients, interleaved, measure, median_ratio, reference_gradients
from loopgrad.experiments.benches.cells import BranchCell
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
from loopgrad.experiments.benches.peers import BETA, Maker, Method, memcnn, revdeq, revlib
from loopgrad.gradients import BPTT, CheckpointedBPTT, Estimator, ReversibleBPTT
from loopgrad.models import Damped, Leapfrog

COLUMNS = ("time", "FLOPs", "saved MiB", "peak MiB", "error")
FAR = 1e-3  # relative distance from which a reconstructed z_0 or the gradient of x counts as broken


class Problem(nn.Module):
    """The cell f with z_0 and x, all of them differentiated."""

    def __init__(self, cell: nn.Module, z_0: Tensor, x: Tensor):
        super().__init__()
        self.cell, self.z_0, self.x = cell, nn.Parameter(z_0), nn.Parameter(x)

    def loss(self, method: Method, x: Tensor | None = None) -> Tensor:
        """Return a scalar that depends on every entry of z_T."""
        last = method(self.z_0, self.x if x is None else x)
        return (last * last.roll(1, 0)).mean()


@dataclass(frozen=True)
class Reversible(Bench):
    """A residual branch f of attention and SwiGLU in two reversible recursions that start from z_{-1} = z_0.

    additive: z_{t+1} = z_{t-1} + f(z_t, x) / T. damped: z_{t+1} = z_{t-1} / 2 + f(z_t, x) / 2, RevDEQ's.

    Columns: time and FLOPs of a forward and backward pass over those of the hand-written float32 loop of the group;
    saved and peak bytes; error, of the gradient of parameters, x and z_0 relative to the float64 loop; broke, what
    checks found: a gradient that is missing or wrong or not finite, or an exception, with x a leaf or x made by an
    encoder; a parameter's hook that fires more than once; autograd.grad; z_0 as reconstructed in backward.

    Args:
        hidden_size: Features.
        seq_len: Positions.
        batch_size: Samples.
        lengths: Numbers of updates, even: memcnn and RevDEQ make two at a time.
    """

    hidden_size: int = 128
    seq_len: int = 8
    batch_size: int = 16
    lengths: tuple[int, ...] = (64, 256)
    repeats: int = field(default=7, kw_only=True)

    def __post_init__(self) -> None:
        if any(length < 2 or length % 2 for length in self.lengths):
            raise ValueError(f"lengths={list(self.lengths)} must be even numbers of at least 2")
        super().__post_init__()

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> list[dict[str, Any]]:
        """Measure every method of both groups at every length."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the peers' deprecated calls, at import, forward and backward
            parts = [
                Part(f"{group}, {length} updates", partial(self._at, length, group), len(GROUPS[group]))
                for length in self.lengths
                for group in GROUPS
            ]
            return list(ledger.each(parts))

    def _at(self, length: int, group: str) -> list[dict[str, Any]]:
        makers, generator = GROUPS[group], torch.Generator().manual_seed(0)
        cell = BranchCell(self.hidden_size, max(1, self.hidden_size // 32), generator)
        shape = (self.batch_size, self.seq_len, self.hidden_size)
        problem = Problem(cell, torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
        exact = reference_gradients(lambda module: module.loss(makers["loop"](module.cell, length)), problem)  # pyright: ignore
        methods, gradients, broke = {}, {}, {}
        for name, make in makers.items():
            try:
                gradients[name], broke[name] = _checked(problem, method := make(cell, length), exact)
                methods[name] = method
            except Exception as error:  # a peer's, of any kind
                broke[name] = "not installed" if isinstance(error, ImportError) else _words(error)
        runs = {name: partial(problem.loss, method) for name, method in methods.items()}
        seconds = interleaved(runs, repeats=self.repeats, warmup=0, clock=time.process_time)
        costs = {name: measure(run, cell=cell, exclude=problem, repeats=0, warmup=0) for name, run in runs.items()}
        rows = []
        for name in makers:
            found = [math.nan] * len(COLUMNS)
            if name in runs:
                ratios = median_ratio(seconds[name], seconds["loop"]), costs[name].flops / costs["loop"].flops
                sizes = costs[name].saved_bytes / 2**20, costs[name].peak_bytes / 2**20
                found = [*ratios, *sizes, compare_gradients(gradients[name], exact).relative_error]
            measured = dict(zip(COLUMNS, found, strict=True))
            rows.append({"updates": length, "group": group, "method": name, **measured, "broke": broke[name]})
        return rows


def _words(error: Exception) -> str:
    return f"raises: {' '.join(str(error).split()[:6]) or type(error).__name__}"


def _checked(problem: Problem, method: Method, exact: Any) -> tuple[dict[str, Tensor | None], str]:
    """Return the gradients, x being a leaf, and what the checks found."""
    parameters, fired, nearest = list(problem.cell.parameters()), [], []

    def look(_: nn.Module, arguments: tuple) -> None:
        z, _, step = arguments
        if step == 0:
            apart = (z.detach() - problem.z_0.detach()).double().norm() / problem.z_0.detach().double().norm()
            nearest.append(apart.nan_to_num(math.inf).item())

    problem.zero_grad()
    loss = problem.loss(method)
    hooks = [p.register_hook(lambda _, i=i: fired.append(i)) for i, p in enumerate(parameters)]
    hooks.append(problem.cell.register_forward_pre_hook(look))
    try:
        loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    gradients = {name: p.grad for name, p in problem.named_parameters()}
    found = [f"{name.removeprefix('cell.')}.grad None" for name, gradient in gradients.items() if gradient is None]
    if not all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None):
        found.append("nan")
    if (most := max(fired.count(i) for i in range(len(parameters)))) != 1:
        found.append(f"hooks x{most}")
    if nearest and min(nearest) > FAR:
        found.append(f"z_0 off {min(nearest):.0e}")
    problem.zero_grad()  # to None: what comes next must not add to these gradients
    found += [f for f in _with_encoder(problem, method, exact["x"]) if f not in found]
    try:
        torch.autograd.grad(problem.loss(method), parameters)
    except Exception:  # a peer's, of any kind
        found.append("autograd.grad raises")
    return gradients, ", ".join(found) or "-"


def _with_encoder(problem: Problem, method: Method, exact: Tensor) -> list[str]:
    """What is wrong when x comes out of a module with parameters of its own."""
    ones = torch.ones(problem.x.shape[-1], requires_grad=True)
    try:
        problem.loss(method, problem.x.detach() * ones).backward()
    except Exception as error:  # a peer's, of any kind
        return [f"encoded x {_words(error)}"]
    if ones.grad is None:
        return ["x.grad None"]
    off = compare_gradients({"": ones.grad}, {"": (problem.x.detach() * exact).sum((0, 1))}).relative_error
    return [] if off <= FAR else [f"x.grad off {off:.0e}"]


def _additive(cell: nn.Module, length: int, other: Tensor, z: Tensor, x: Tensor, step: int) -> Tensor:
    return other + cell(z, x, step) / length


def _damped(cell: nn.Module, length: int, other: Tensor, z: Tensor, x: Tensor, step: int) -> Tensor:
    return (1 - BETA) * other + BETA * cell(z, x, step)


def _loop(update: Callable[..., Any]) -> Maker:
    def run(cell: nn.Module, length: int, z_0: Tensor, x: Tensor) -> Tensor:
        other = z = z_0
        for step in range(length):
            other, z = z, update(cell, length, other, z, x, step)
        return z

    return lambda cell, length: partial(run, cell, length)


def _ours(estimator: Estimator, couple: Callable[[nn.Module, int], nn.Module]) -> Maker:
    def run(coupled: nn.Module, length: int, z_0: Tensor, x: Tensor) -> Tensor:
        return estimator(coupled, z_0, x, length).state

    return lambda cell, length: partial(run, couple(cell, length), length)


def _leapfrog(arithmetic: Any = "exact") -> Callable[[nn.Module, int], nn.Module]:
    return lambda cell, length: Leapfrog(cell, scale=1 / length, arithmetic=arithmetic)


GROUPS: dict[str, dict[str, Maker]] = {
    "additive": {
        "loop": _loop(_additive),
        "torch checkpoint": _loop(partial(checkpoint, _additive, use_reentrant=False)),
        "torch reentrant": _loop(partial(checkpoint, _additive, use_reentrant=True)),
        "BPTT": _ours(BPTT(), _leapfrog()),
        "ReversibleBPTT": _ours(ReversibleBPTT(), _leapfrog()),
        "ReversibleBPTT float64": _ours(ReversibleBPTT(), _leapfrog("float64")),
        "ReversibleBPTT float32": _ours(ReversibleBPTT(), _leapfrog("float32")),
        "CheckpointedBPTT": _ours(CheckpointedBPTT(), _leapfrog()),
        "revlib function": revlib("autograd_function"),
        "revlib graph": revlib("autograd_graph"),
        "memcnn": memcnn,
    },
    "damped": {
        "loop": _loop(_damped),
        "RevDEQ float32": revdeq(torch.float32),
        "RevDEQ float64": revdeq(torch.float64),
        "ReversibleBPTT": _ours(ReversibleBPTT(), lambda cell, _: Damped(cell, BETA)),
    },
}
