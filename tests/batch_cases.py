"""Cells whose states hold the batch in another dimension than the first, in as many rows as there are samples.

Each has a copy, written by hand, that takes the batch first; the reference for whoever is told where the batch is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.gradients import BatchDims

B = 3  # samples; and layers, updates, channels or heads


class Stack(nn.Module):
    """GRUs on top of each other, as torch's keep them: (layers, batch, size); update t reads inputs[t]."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.GRUCell(2, 2) for _ in range(B)])

    def forward(self, state: tuple, inputs: Tensor, step: int) -> tuple:
        below, found = inputs[step % len(inputs)], []
        for layer, cell in enumerate(self.cells):
            below = cell(below, state[0][layer])
            found.append(below)
        return torch.stack(found), 0.5 * state[1] + below


class Memories(nn.Module):
    """An LSTM's stack of two states, in a dict, beside one vector that all updates read."""

    period = 2

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(2, 2) for _ in range(B)])

    def forward(self, state: dict, inputs: dict, step: int) -> dict:
        below, h, c = inputs["x"] * inputs["gain"], [], []
        for layer, cell in enumerate(self.cells):
            below, memory = cell(below, (state["h"][layer], state["c"][layer]))
            h.append(below)
            c.append(memory)
        return {"h": torch.stack(h), "c": torch.stack(c) if step % 2 else state["c"]}


class Convolved(nn.Module):
    """A map of channels first, (channels, batch, pixels), that returns its states transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(B, B, 3, padding=1)

    def forward(self, state: Tensor, inputs: Tensor, step: int) -> Tensor:
        return torch.tanh(0.7 * self.conv(state.transpose(0, 1)).transpose(0, 1) + inputs)


class Heads(nn.Module):
    """Heads that see each other, (heads, batch, size), and that `view` their state, which must lie so."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(B, B) / 3)
        self.out = nn.Linear(2, 2)

    def forward(self, state: Tensor, inputs: Any, step: int) -> Tensor:
        return torch.tanh(self.out((self.mix @ state.view(B, -1)).view(B, B, 2)) + 0.1)


class Copy(nn.Module):
    """The cell inside on states that have the batch first; inputs are moved by hand too."""

    def __init__(self, cell: nn.Module, to: Callable[[Any], Any], back: Callable[[Any], Any], inputs: Callable):
        super().__init__()
        self.cell, self.to, self.back, self.inputs = cell, to, back, inputs
        self.period = getattr(cell, "period", 1)

    def forward(self, state: Any, inputs: Any, step: int) -> Any:
        return self.back(self.cell(self.to(state), self.inputs(inputs), step))


@dataclass(frozen=True)
class BatchCase:
    """A cell, the copy of it that has the batch first, and how state and inputs are moved for that."""

    cell: nn.Module
    state: Any
    inputs: Any
    batch_dim: BatchDims
    move: Callable[[Any], Any]  # a state, for the copy, and back
    move_inputs: Callable[[Any], Any] = lambda x: x
    back_inputs: Callable[[Any], Any] = lambda x: x

    @property
    def copy(self) -> Copy:
        def contiguous(state: Any) -> Any:  # a copy of its own, and no view of what the cell returned
            return _each(Tensor.contiguous, self.move(state))

        return Copy(self.cell, contiguous, self.move, self.back_inputs)


def swapped(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1)


def _each(fn: Callable, state: Any) -> Any:
    if isinstance(state, dict):
        return {key: fn(leaf) for key, leaf in state.items()}
    return tuple(map(fn, state)) if isinstance(state, tuple) else fn(state)


def _leaf(*shape: int) -> Tensor:
    return torch.randn(*shape).requires_grad_()


def _stack() -> BatchCase:
    return BatchCase(
        Stack(),
        (_leaf(B, B, 2), _leaf(B, 2)),
        _leaf(B, B, 2),
        BatchDims((1, 0), inputs=1),
        lambda z: (swapped(z[0]), z[1]),
        swapped,
        swapped,
    )


def _memories() -> BatchCase:
    inputs = {"x": _leaf(B, 2), "gain": torch.rand(2), "name": "gain is of no sample"}
    dims = {"x": 0, "gain": None, "name": None}
    state = {"h": _leaf(B, B, 2), "c": _leaf(B, B, 2)}
    return BatchCase(Memories(), state, inputs, BatchDims({"h": 1, "c": -2}, dims), lambda z: _each(swapped, z))


def _convolved() -> BatchCase:
    z, x = _leaf(B, B, 5), _leaf(B, B, 5)
    return BatchCase(Convolved(), z, x, BatchDims(1, inputs=1), swapped, swapped, swapped)


def _heads() -> BatchCase:
    return BatchCase(Heads(), _leaf(B, B, 2), None, BatchDims(1), swapped)


CASES: dict[str, Callable[[], BatchCase]] = {
    "stack": _stack,
    "memories": _memories,
    "convolved": _convolved,
    "heads": _heads,
}


def build(name: str, dtype: torch.dtype = torch.float64) -> BatchCase:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        return CASES[name]()
    finally:
        torch.set_default_dtype(before)
