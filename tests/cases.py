"""The lists the conformance suite runs over: a new estimator is one row of ESTIMATORS, a new cell one row of CELLS."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from textwrap import dedent
from typing import Any

import torch
from repository import ROOT, blocks
from torch import nn

from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    Estimator,
    ForwardGradient,
    ImplicitGradient,
    ReversibleBPTT,
    Stationary,
    TruncatedBPTT,
)
from loopgrad.gradients.contract import period_of
from loopgrad.models import Coupling, Damped, Leapfrog


@dataclass(frozen=True)
class EstimatorCase:
    name: str
    estimator: Estimator
    # number of last updates whose derivative the estimate must equal; None for all of them
    differentiated: Callable[[nn.Module], int] | None = None
    # an estimator for invertible cells runs on the cells of the list once they are coupled
    couple: Callable[[nn.Module], Coupling] | None = None
    refused: tuple[str, ...] = ()

    def build(self, name: str) -> "Problem":
        problem = build(name)
        if self.couple is None:
            return problem
        coupled = self.couple(problem.cell)
        start = coupled.couple(detached(problem.state))
        for leaf in leaves_of((start.current, start.other)):
            leaf.requires_grad_()
        return Problem(coupled, start, problem.inputs)


@dataclass(frozen=True)
class OfTheFirstUpdate(ForwardGradient):
    """All updates but the first in the window: the one adjoint that is left is known, and the estimate is exact."""

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Any:
        return ForwardGradient.rollout(replace(self, window=max(0, num_steps - 1)), cell, state, inputs, num_steps)


def of_the_guide() -> Estimator:
    """The estimator that the guide for contributors writes, held to what it says of estimators."""
    ((_, code),) = blocks((ROOT / "CONTRIBUTING.md").read_text(), "python")
    names: dict[str, Any] = {}
    exec(dedent(code), names)
    return names["LastTwoUpdates"]()


ESTIMATORS = [
    EstimatorCase("bptt", BPTT()),
    EstimatorCase("checkpointed_sqrt", CheckpointedBPTT()),
    EstimatorCase("checkpointed_1", CheckpointedBPTT(schedule=1)),
    EstimatorCase("checkpointed_3", CheckpointedBPTT(schedule=3)),
    EstimatorCase("checkpointed_1000", CheckpointedBPTT(schedule=1000)),
    EstimatorCase("checkpointed_binomial_0", CheckpointedBPTT("binomial", num_snapshots=0)),
    EstimatorCase("checkpointed_binomial_1", CheckpointedBPTT("binomial", num_snapshots=1)),
    EstimatorCase("checkpointed_binomial_3", CheckpointedBPTT("binomial", num_snapshots=3)),
    EstimatorCase("truncated_one_step", TruncatedBPTT(num_steps=2), lambda cell: 2),
    EstimatorCase("truncated_last_cycle", TruncatedBPTT(num_cycles=1), period_of),
    EstimatorCase("truncated_two_cycles", TruncatedBPTT(num_cycles=2), lambda cell: 2 * period_of(cell)),
    EstimatorCase("of_the_guide", of_the_guide(), lambda cell: 2),
    EstimatorCase("truncated_whole", TruncatedBPTT(num_steps=10_000)),
    # no sample passes this gate, so that the fallback's gradient is all of it
    EstimatorCase(
        "implicit_falls_back_to_last_cycle",
        ImplicitGradient(forward_rtol=0, max_gradient_error=0, fallback=TruncatedBPTT(num_cycles=1)),
        period_of,
    ),
    EstimatorCase(
        "implicit_falls_back_to_checkpointed",
        ImplicitGradient(forward_rtol=0, max_gradient_error=0, fallback=CheckpointedBPTT()),
        # what a plain function closes over is swapped once, not a second time inside
        refused=("closure", "closure_over_parameters", "no_inputs"),
    ),
    # attention takes another kernel, which rounds otherwise: tested in test_forward_gradient.py
    EstimatorCase("forward_first_update", OfTheFirstUpdate(2, seed=0), refused=("attention",)),
    EstimatorCase("forward_first_update_central", OfTheFirstUpdate(2, mode="central", seed=0)),
    # in float64: what is exact on a grid has no finite differences
    EstimatorCase(
        "reversible_damped",
        ReversibleBPTT(),
        couple=lambda cell: Damped(cell, "1/8", arithmetic="float64", per="update"),
        refused=("buffers", "normalised"),
    ),
    EstimatorCase(
        "reversible_leapfrog",
        ReversibleBPTT(),
        couple=lambda cell: Leapfrog(cell, 0.1, arithmetic="float64"),
        refused=("buffers", "normalised"),
    ),
]


@dataclass(frozen=True)
class Problem:
    """A cell with a state and inputs to start from, and the tensors whose gradient is looked at."""

    cell: nn.Module
    state: Any
    inputs: Any

    def sources(self) -> dict[str, torch.Tensor]:
        inner = self.cell.cell if isinstance(self.cell, Coupling) else self.cell
        found = {f"parameter {name}": p for name, p in inner.named_parameters()}
        for label, leaves in (("inputs", leaves_of(self.inputs)), ("state", leaves_of(self.state))):
            found |= {f"{label} {i}": leaf for i, leaf in enumerate(leaves)}
        closed_over = [t for m in self.cell.modules() if isinstance(m, Stationary) for t in m.closed_over]
        found |= {f"closed over {i}": t for i, t in enumerate(closed_over)}
        return {name: t for name, t in found.items() if t.requires_grad}


def leaves_of(tree: Any) -> list[torch.Tensor]:
    """Tensors of a nesting, found without the library's own flattening."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    if hasattr(tree, "__dataclass_fields__"):
        tree = [getattr(tree, name) for name in tree.__dataclass_fields__]
    return [leaf for item in tree for leaf in leaves_of(item)] if isinstance(tree, list | tuple) else []


def loop(problem: Problem, num_steps: int, differentiated: int | None = None) -> Any:
    """The reference recursion: a hand-written loop, detached where the estimate begins."""
    state = problem.state
    for step in range(num_steps):
        if differentiated is not None and step == num_steps - differentiated:
            state = detached(state)
        state = problem.cell(state, problem.inputs, step)
    return state


def detached(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return tree.detach()
    if isinstance(tree, dict):
        return {key: detached(value) for key, value in tree.items()}
    if hasattr(tree, "__dataclass_fields__"):
        return type(tree)(**{name: detached(getattr(tree, name)) for name in tree.__dataclass_fields__})
    return type(tree)(detached(item) for item in tree)


def loss_of(state: Any) -> torch.Tensor:
    leaves = leaves_of(state)
    return sum(((leaf - 0.3 * i) ** 2).sum() + leaf.sin().sum() for i, leaf in enumerate(leaves))  # pyright: ignore


class Affine(nn.Module):
    """z <- A z + B x: the recursion whose every derivative has a closed form."""

    def __init__(self, size: int):
        super().__init__()
        self.A = nn.Parameter(0.6 * torch.linalg.qr(torch.randn(size, size))[0])
        self.B = nn.Parameter(torch.randn(size, size))

    def forward(self, state: torch.Tensor, inputs: torch.Tensor, step: int) -> torch.Tensor:
        return state @ self.A.T + inputs @ self.B.T


class TwoStreams(nn.Module):
    """Two latent streams in a dict, two z_L updates for each z_H update; z_H passes through untouched."""

    period = 3

    def __init__(self, size: int):
        super().__init__()
        self.low, self.high = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, state: dict, inputs: dict, step: int) -> dict:
        if step % self.period < 2:
            z_L = torch.tanh(self.low(state["z_L"] + state["z_H"]) + inputs["x"] * inputs["mask"])
            return {"z_L": z_L, "z_H": state["z_H"]}
        return {"z_L": state["z_L"], "z_H": torch.tanh(self.high(state["z_H"] + state["z_L"]))}


class Recurrent(nn.Module):
    """A GRU that reads one input per step, over a tuple state, with a slot in inputs that is None."""

    def __init__(self, size: int):
        super().__init__()
        self.gru = nn.GRUCell(size, size)
        self.decay = nn.Parameter(torch.tensor(0.4))

    def forward(self, state: tuple, inputs: tuple, step: int) -> tuple:
        sequence, tokens, _ = inputs
        hidden = self.gru(sequence[:, step] + tokens[:, step, None], state[0])
        return hidden, self.decay * state[1] + hidden.mean(-1, keepdim=True)


@dataclass
class Memory:
    fast: torch.Tensor
    slow: list


class DataclassState(nn.Module):
    """A dataclass state; one projection is used twice in an update under two names, one parameter never."""

    def __init__(self, size: int):
        super().__init__()
        self.read = nn.Linear(size, size)
        self.write = nn.Linear(size, size)
        self.write.weight = self.read.weight
        self.unused = nn.Parameter(torch.zeros(3))
        self.frozen = nn.Linear(size, size).requires_grad_(False)

    def forward(self, state: Memory, inputs: torch.Tensor, step: int) -> Memory:
        fast = torch.tanh(self.write(self.read(state.fast)) + self.frozen(inputs) + state.slow[0])
        return Memory(fast, [0.9 * state.slow[0] + 0.1 * fast])


class Attention(nn.Module):
    """Multi-head attention in eval mode, where torch takes another kernel under no_grad."""

    def __init__(self, size: int):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(size, 2, 2 * size, dropout=0.0, batch_first=True)
        self.eval()

    def forward(self, state: torch.Tensor, inputs: torch.Tensor, step: int) -> torch.Tensor:
        return self.block(state + inputs)


class Dropout(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, state: torch.Tensor, inputs: torch.Tensor, step: int) -> torch.Tensor:
        return torch.tanh(nn.functional.dropout(self.linear(state), 0.5, self.training) + inputs)


class Buffers(nn.Module):
    """Batch statistics and a counting buffer that the update reads and rewrites."""

    def __init__(self, size: int):
        super().__init__()
        self.linear, self.norm = nn.Linear(size, size), nn.BatchNorm1d(size)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, state: torch.Tensor, inputs: torch.Tensor, step: int) -> torch.Tensor:
        self.count += 1
        return torch.tanh(self.norm(self.linear(state)) + inputs / self.count.clone())


class Normalised(nn.Module):
    """Spectral normalisation in train mode: each call computes the weight anew, and rewrites the vectors behind it."""

    def __init__(self, size: int):
        super().__init__()
        self.linear = nn.utils.parametrizations.spectral_norm(nn.Linear(size, size))

    def forward(self, state: torch.Tensor, inputs: torch.Tensor, step: int) -> torch.Tensor:
        return torch.tanh(self.linear(state) + inputs)


class Twice(nn.Module):
    """A state that holds the same tensor twice, and hands an input on as a state."""

    def __init__(self, size: int):
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(size, size) / size**0.5 for _ in range(3)])

    def forward(self, state: list, inputs: torch.Tensor, step: int) -> list:
        z = torch.tanh(state[0] @ self.weights[step % 3] + state[1] * state[2])
        return [z, z, inputs]


class Nested(nn.Module):
    """An update that is itself a recursion, with an estimator of its own."""

    def __init__(self, size: int, inner: Estimator):
        super().__init__()
        self.inner, self.estimator = Affine(size), inner

    def forward(self, state: torch.Tensor, inputs: torch.Tensor, step: int) -> torch.Tensor:
        return torch.tanh(self.estimator(self.inner, state, inputs, 5).state)


def _leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).requires_grad_()


def _affine() -> Problem:
    return Problem(Affine(4), _leaf(3, 4), _leaf(3, 4))


def _two_streams() -> Problem:
    inputs = {"x": _leaf(3, 4), "mask": torch.tensor([[True], [False], [True]])}
    return Problem(TwoStreams(4), {"z_L": _leaf(3, 4), "z_H": _leaf(3, 4)}, inputs)


def _recurrent() -> Problem:
    inputs = (_leaf(3, 40, 4), torch.randint(0, 3, (3, 40)), None)
    return Problem(Recurrent(4), (_leaf(3, 4), _leaf(3, 1)), inputs)


def _dataclass_state() -> Problem:
    return Problem(DataclassState(4), Memory(_leaf(3, 4), [torch.randn(3, 4)]), _leaf(3, 4))


def _attention() -> Problem:
    return Problem(Attention(4), torch.randn(3, 5, 4), _leaf(3, 5, 4))


def _dropout() -> Problem:
    return Problem(Dropout(4), _leaf(3, 4), _leaf(3, 4))


def _buffers() -> Problem:
    return Problem(Buffers(4), _leaf(6, 4), _leaf(6, 4))


def _normalised() -> Problem:
    return Problem(Normalised(4), _leaf(3, 4), _leaf(3, 4))


def _twice() -> Problem:
    return Problem(Twice(4), [_leaf(3, 4), _leaf(3, 4), _leaf(3, 4)], _leaf(3, 4))


def _nested() -> Problem:
    return Problem(Nested(4, CheckpointedBPTT()), _leaf(3, 4), _leaf(3, 4))


def _closure() -> Problem:
    linear, gain = nn.Linear(4, 4), _leaf(4)
    matrix = 0.5 * _leaf(4, 4)  # not a leaf: its gradient goes on to what made it
    cell = Stationary(lambda z, x: torch.tanh(linear(z) @ matrix) * gain + x, parameters=[linear, gain, matrix])
    return Problem(cell, _leaf(3, 4), _leaf(3, 4))


def _closure_over_parameters() -> Problem:
    linear = nn.Linear(4, 4)
    return Problem(Stationary(lambda z, x: torch.tanh(linear(z)) + x, linear.parameters()), _leaf(3, 4), _leaf(3, 4))


def _no_inputs() -> Problem:
    gain = _leaf(4)
    return Problem(Stationary(lambda z, _: torch.cos(gain * z), parameters=[gain]), _leaf(3, 4), None)


CELLS: dict[str, Callable[[], Problem]] = {
    "affine": _affine,
    "two_streams": _two_streams,
    "recurrent": _recurrent,
    "dataclass_state": _dataclass_state,
    "attention": _attention,
    "dropout": _dropout,
    "buffers": _buffers,
    "normalised": _normalised,
    "twice": _twice,
    "nested": _nested,
    "closure": _closure,
    "closure_over_parameters": _closure_over_parameters,
    "no_inputs": _no_inputs,
}


def build(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Problem:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(seed)
        return CELLS[name]()
    finally:
        torch.set_default_dtype(before)
