"""Recursions whose samples end by themselves: batches, and the loop by hand that runs each sample alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from cells import Memory, TwoStreams
from problems import leaves_of
from torch import Tensor, nn

from loopgrad.gradients import BPTT, CheckpointedBPTT, Estimator, ReversibleBPTT, Stationary, TruncatedBPTT, tree
from loopgrad.models import Coupling, Damped, Leapfrog

BATCH, SIZE, MOST = 5, 4, 24


class Counting(nn.Module):
    """A cell of the list that is shaken by x_t, and counts the rows and the calls that it is given."""

    def __init__(self, cell: nn.Module):
        super().__init__()
        self.cell, self.calls = cell, 0

    @property
    def period(self) -> int:
        return getattr(self.cell, "period", 1)

    def forward(self, state: Any, given: Any, step: int) -> Any:
        self.calls += 1
        inputs, x = given
        return self.cell(state, inputs + x[:, None], step)


class Gated(nn.Module):
    """A dataclass state of two kinds of leaves, with a counter per row and a number of the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.rate = nn.GRUCell(SIZE, SIZE), nn.Parameter(torch.tensor(0.3))

    def forward(self, state: Memory, inputs: Tensor, step: int) -> Memory:
        fast = self.gru(inputs, state.fast)
        count, whole, nothing = state.slow[1:]
        return Memory(fast, [torch.lerp(state.slow[0], fast, self.rate), count + 1, whole + 1, nothing])


def _gated() -> tuple[nn.Module, Any]:
    counter = torch.zeros(BATCH, dtype=torch.long)
    return Gated(), Memory(_leaf(), [_leaf(), counter, torch.tensor(0), None])


def _leaf() -> Tensor:
    return (torch.randn(BATCH, SIZE) * 64).round().div(64).requires_grad_()  # on the grid of exact arithmetic


def _gru() -> tuple[nn.Module, Any]:
    gru = nn.GRUCell(SIZE, SIZE)
    return Stationary(lambda z, x: gru(x, z), parameters=gru), _leaf()


def _lstm() -> tuple[nn.Module, Any]:
    lstm = nn.LSTMCell(SIZE, SIZE)
    return Stationary(lambda z, x: lstm(x, z), parameters=lstm), (_leaf(), _leaf())


class Streams(TwoStreams):
    """Two streams, whose cycle is three updates."""

    def forward(self, state: dict, inputs: Any, step: int) -> dict:
        return super().forward(state, {"x": inputs, "mask": torch.ones_like(inputs)}, step)


CELLS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "gru": _gru,
    "lstm": _lstm,
    "two_streams": lambda: (Streams(SIZE), {"z_L": _leaf(), "z_H": _leaf()}),
    "dataclass": _gated,
}
COUPLINGS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda cell: cell,
    "damped": lambda cell: Damped(cell, "1/4"),
    "leapfrog": lambda cell: Leapfrog(cell, 0.1, arithmetic="float64"),
}

ESTIMATORS = {
    "bptt": BPTT(),
    "sqrt": CheckpointedBPTT(),
    "segments": CheckpointedBPTT(schedule=3),
    "binomial": CheckpointedBPTT("binomial", num_snapshots=1),
    "budget": CheckpointedBPTT(memory_budget="22KiB"),
    "whole": TruncatedBPTT(10_000),
    "reversible": ReversibleBPTT(),
    "anchors": ReversibleBPTT(anchors=4),
}


@dataclass
class Ended:
    """A batch whose samples end at updates of their own."""

    cell: Counting | Coupling
    counter: Counting
    state: Any
    inputs: Tensor
    xs: Tensor
    head: nn.Linear
    encoder: nn.Linear

    def sources(self) -> list[Tensor]:
        every = [*self.counter.parameters(), *self.head.parameters(), *self.encoder.parameters(), self.inputs]
        return [t for t in (*every, *leaves_of(self.state)) if t.requires_grad]

    def readout(self, state: Any, inputs: Any, x: Tensor, step: int) -> Tensor:
        return self.head(leaves_of(state)[0]).logsumexp(1) + inputs.sum(1) + x * step

    def event(self, state: Any, inputs: Any, x: Tensor, step: int) -> Tensor:
        assert not any(leaf.requires_grad for leaf in tree.tensors((state, inputs, x)))
        z = leaves_of(state)[0].detach()
        return (z.sum(1) * 7).frac().abs() < 0.03 * step  # nearly all in the end

    def run(self, estimator: Estimator, num_steps: int = MOST, **given: Any) -> Any:
        xs = self.encoder(self.xs)[:num_steps, :, 0]
        return estimator(self.cell, self.state, self.inputs, num_steps, xs=xs, readout=self.readout, **given)

    def row(self, i: int, num_steps: int = MOST, event: Any = None) -> tuple[int, Any, Tensor, list[Tensor]]:
        """Sample i alone, by hand: its number of updates, last plain state, last answer and all answers."""
        cut = lambda leaf: leaf[i : i + 1] if leaf.dim() else leaf  # noqa: E731
        state, inputs = tree.map_tensors(cut, self.state), self.inputs[i : i + 1]
        xs, cell, answers = self.encoder(self.xs)[:, i : i + 1, 0], self.cell, []
        coupled = isinstance(cell, Coupling)
        state = cell.couple(state) if coupled else state
        for step in range(num_steps):
            state = cell(state, (inputs, xs[step]), step)
            plain = cell.read(state) if coupled else state
            answers.append(self.readout(plain, inputs, xs[step], step))
            shown = tree.map_tensors(Tensor.detach, (plain, inputs, xs[step]))
            if (event or self.event)(*shown, step).item():
                break
        return len(answers), cell.read(state) if coupled else state, answers[-1], answers


def build(name: str = "gru", coupling: str = "plain", seed: int = 0) -> Ended:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(seed)
        cell, state = CELLS[name]()
        counter = Counting(cell)
        inputs, xs = torch.randn(BATCH, SIZE).requires_grad_(), torch.randn(MOST, BATCH, 2)
        head, encoder = nn.Linear(SIZE, 3), nn.Linear(2, 1)
        return Ended(COUPLINGS[coupling](counter), counter, state, inputs, xs, head, encoder)  # pyright: ignore
    finally:
        torch.set_default_dtype(before)
