"""Truncation with samples of different lengths: the last updates of each sample carry its gradient, as when alone."""

import pytest
import torch
from torch import nn

from loopgrad.gradients import BPTT, EveryCycle, LastOf, Stationary, TruncatedBPTT
from loopgrad.models import Damped

LENGTHS = [8, 16, 4, 12, 16]
OF_ANY_LENGTH = [5, 16, 1, 0, 11]
ESTIMATORS = [
    TruncatedBPTT(1),
    TruncatedBPTT(3),
    TruncatedBPTT(6),
    TruncatedBPTT(num_cycles=1),
    TruncatedBPTT(num_cycles=2),
    TruncatedBPTT(16),
    TruncatedBPTT(scope=LastOf({"z_H": 1, "z_L": 4})),
    TruncatedBPTT(scope=EveryCycle(2)),
    BPTT(),
]


class TwoStreams(nn.Module):
    """Three updates of z_L and one of z_H make a cycle; each hands the other stream through."""

    period = 4

    def __init__(self):
        super().__init__()
        self.low, self.high = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, state, inputs, step):
        if step % 4 < 3:
            return state | {"z_L": torch.tanh(self.low(state["z_L"] + state["z_H"]) + inputs * (step + 1))}
        return state | {"z_H": torch.tanh(self.high(state["z_H"] + state["z_L"]))}


class Streams:
    """Four updates in a cycle, two leaves in the state."""

    def __init__(self):
        torch.manual_seed(0)
        self.cell = TwoStreams().double()
        self.raw = torch.randn(len(LENGTHS), 4, dtype=torch.float64, requires_grad=True)
        self.first = {k: torch.randn(len(LENGTHS), 4, dtype=torch.float64, requires_grad=True) for k in ("z_H", "z_L")}
        self.sources = [*self.cell.parameters(), self.raw, *self.first.values()]

    def run(self, estimator, rows, steps, **given):
        state = {name: z[rows] for name, z in self.first.items()}
        return estimator(self.cell, state, self.raw[rows], steps, **given)

    def loss(self, state):
        return (state["z_H"] * torch.linspace(1, 2, 4)).sum() + state["z_L"].square().sum()


class Scanned:
    """A network that reads an input per update, with its batch in dimension 1; a coupled one as well."""

    def __init__(self, couple=lambda cell: cell, **where):
        torch.manual_seed(0)
        gru, self.where = nn.GRUCell(3, 3).double(), where
        of = (lambda z, x: gru(x, z[0])[None]) if where else (lambda z, x: gru(x, z))
        self.cell = couple(Stationary(of, parameters=gru))
        self.raw = torch.randn(16, len(LENGTHS), 3, dtype=torch.float64, requires_grad=True)
        self.first = torch.randn(len(LENGTHS), 3).mul(64).round().div(64).double().requires_grad_()
        self.sources = [*gru.parameters(), self.raw, self.first]

    def run(self, estimator, rows, steps, **given):
        first = self.first[rows][None] if self.where else self.first[rows]
        return estimator(self.cell, first, None, steps, xs=self.raw[:steps, rows], **given, **self.where)

    def loss(self, state):
        return state.sin().sum()


PROBLEMS = {
    "streams": Streams,
    "scanned": Scanned,
    "layers first": lambda: Scanned(batch_dim=1),
    "damped": lambda: Scanned(lambda cell: Damped(cell, "1/4")),
}
BY_STREAM = [e for e in ESTIMATORS if getattr(e, "scope", None)]
CASES = [(p, e) for p in PROBLEMS for e in ESTIMATORS if p == "streams" or e not in BY_STREAM]


@pytest.mark.parametrize("lengths", [LENGTHS, OF_ANY_LENGTH], ids=str)
@pytest.mark.parametrize(("problem", "estimator"), CASES, ids=str)
def test_each_sample_has_the_gradient_that_it_has_alone(problem, estimator, lengths):
    if getattr(estimator, "scope", None) and lengths is OF_ANY_LENGTH:
        lengths = [max(4, length) for length in lengths]  # a stream must be changed for its updates to be counted
    it = PROBLEMS[problem]()
    together = it.loss(it.run(estimator, slice(None), 16, lengths=torch.tensor(lengths)).state)
    alone = sum(it.loss(it.run(estimator, slice(i, i + 1), n).state) for i, n in enumerate(lengths))
    torch.testing.assert_close(together, alone, rtol=1e-13, atol=1e-13)
    for source, (mine, theirs) in enumerate(
        zip(*(torch.autograd.grad(t, it.sources, allow_unused=True) for t in (together, alone)), strict=True)
    ):
        mine, theirs = (torch.zeros_like(it.sources[source]) if g is None else g for g in (mine, theirs))
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_no_graph_is_kept_where_no_sample_carries_gradient():
    it = Streams()
    stats = it.run(TruncatedBPTT(3), slice(None), 16, lengths=[4, 16, 4, 16, 4]).stats
    assert stats.vjps == 6 and stats.cell_evaluations == 16
    assert it.run(TruncatedBPTT(3), slice(None), 16, lengths=[16] * 5).stats.vjps == 3
    with torch.no_grad():
        assert it.run(TruncatedBPTT(3), slice(None), 16, lengths=LENGTHS).stats.vjps == 0


def test_a_sample_that_was_differentiated_has_not_stopped():
    it = Streams()
    assert not it.run(TruncatedBPTT(3), slice(None), 16, lengths=LENGTHS).stats.numbers().get("stopped")
