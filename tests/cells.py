"""The cells the conformance suite runs over: a new one is a row of CELLS."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from problems import Problem
from torch import nn

from loopgrad.gradients import (
    CheckpointedBPTT,
    Estimator,
    Stationary,
)
from loopgrad.models import Net, Slots, rms_norm
from loopgrad.models import attention as layers
from loopgrad.models.latent_cells import SlotTwoStream


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


class Attending(nn.Module):
    """A block of attention alone, of few weights, that leaves masked slots out."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.attention = layers.Attention(4, 2, generator)

    def forward(self, h: torch.Tensor, tables: None, mask: torch.Tensor) -> torch.Tensor:
        return rms_norm(h + self.attention(h, tables, mask))


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


def _slots() -> Problem:
    generator = torch.Generator().manual_seed(0)
    net = Net([Attending(generator)]).to(torch.get_default_dtype())
    mask = torch.tensor([[True] * 3, [True, True, False], [True, False, False]])
    inputs = Slots(_leaf(3, 3, 4), mask)
    return Problem(SlotTwoStream(net, 1), {"z_L": _leaf(3, 3, 4), "z_H": _leaf(3, 3, 4)}, inputs)


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
    "slots": _slots,
}


def build(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Problem:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(seed)
        return CELLS[name]()
    finally:
        torch.set_default_dtype(before)
