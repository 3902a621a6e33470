"""Answers of samples that end before others: what is truncated and what a readout is told are as of each alone."""

import pytest
import torch
from torch import nn

from loopgrad.gradients import (
    BPTT,
    BackwardSteps,
    CheckpointedBPTT,
    ForwardGradient,
    ForwardMode,
    LastOf,
    ReversibleBPTT,
    Stationary,
    TruncatedBPTT,
    Until,
)
from loopgrad.models import Damped, Leapfrog

STEPS, SIZE = 13, 3
LENGTHS = [13, 5, 0, 8, 1, 5]


class Reader(nn.Module):
    """A GRU beside a running mean, with a loss per sample at every step that depends on the step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.head = nn.GRUCell(SIZE, SIZE).double(), nn.Linear(SIZE, 5).double()
        self.xs = torch.randn(STEPS, len(LENGTHS), SIZE, dtype=torch.float64, requires_grad=True)
        self.first = torch.randn(len(LENGTHS), SIZE, dtype=torch.float64, requires_grad=True)
        self.cell = Stationary(self.update, parameters=self.gru)

    def update(self, state, x):
        h, mean = state
        after = self.gru(x, h)
        return after, 0.9 * mean + after

    def loss(self, state, inputs, x, step):
        return self.head(state[0] + state[1]).logsumexp(1) * (1 + step) + x.sum(1)

    def gradients(self, estimator, rows, steps, cell=None, **given):
        """Gradients of answers and last states of some rows, each weighted by its own numbers."""
        h = self.first[rows]
        given |= {"xs": self.xs[:steps, rows], "readout": self.loss}
        rollout = estimator(cell or self.cell, (h, torch.zeros_like(h)), None, steps, **given)
        weights = (torch.arange(len(self.first), dtype=torch.float64) + 1)[rows]
        loss = (weights * (rollout.state[0].square().sum(1) + rollout.state[1].sum(1))).sum()
        loss = loss if rollout.outputs is None else loss + (weights * rollout.outputs).sum()
        sources = [*self.parameters(), self.xs, self.first]
        found = torch.autograd.grad(loss, sources, allow_unused=True) if loss.requires_grad else [None] * len(sources)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(found, sources, strict=True)]


def check(estimator, cell=None, lengths=LENGTHS, **given):
    model = Reader()
    whole = model.gradients(estimator, slice(None), STEPS, cell and cell(model.cell), **given, lengths=lengths)
    alone = [
        model.gradients(estimator, slice(i, i + 1), n, cell and cell(model.cell), **given)
        for i, n in enumerate(lengths)
    ]
    for got, *parts in zip(whole, *alone, strict=True):
        torch.testing.assert_close(got, sum(parts), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("save", ["sum", "all"])
@pytest.mark.parametrize(("length", "every"), [(2, None), (3, 1), (2, 5), (5, 2), (20, 20), (20, None), (4, 4)])
def test_truncated_answers_and_last_states_are_those_of_each_sample_alone(length, every, save):
    check(TruncatedBPTT(length, every=every), save=save)


@pytest.mark.parametrize("cell", [Damped, Leapfrog])
def test_so_they_are_of_coupled_cells(cell):
    lengths = [max(n, 1) for n in LENGTHS]  # a state that is not updated is not rounded to the grid of a coupling
    check(TruncatedBPTT(3), cell, lengths, save="sum")
    check(TruncatedBPTT(2, every=3), cell, lengths, save="all")


def test_so_they_are_where_data_end_the_samples():
    model, found = Reader(), []
    event = Until(lambda state, inputs, x, step: torch.tensor([n <= step + 1 for n in LENGTHS]), every=4)
    for how in ({"until": event}, {"lengths": [max(n, 1) for n in LENGTHS]}):
        found.append(model.gradients(TruncatedBPTT(2), slice(None), STEPS, **how, save="sum"))
    for got, expected in zip(*found, strict=True):
        assert torch.equal(got, expected)


EXACT = [BPTT(), CheckpointedBPTT(), TruncatedBPTT(3), TruncatedBPTT(2, every=1)]


@pytest.mark.parametrize("estimator", EXACT, ids=str)
def test_the_answer_to_the_last_state_is_told_the_last_step_of_each_sample(estimator):
    check(estimator, save="last")
    model = Reader()
    h = model.first
    given = {"xs": model.xs, "lengths": LENGTHS}
    told = BPTT()(model.cell, (h, h), None, STEPS, readout=lambda z, i, x, step: z[0][:, 0] * 0 + step, **given)
    assert told.outputs.tolist() == [12, 4, 0, 7, 0, 4]
    ones = BPTT()(model.cell, (h, h), None, STEPS, readout=lambda z, i, x, step: z[0][:, 0] * 0 + 1, **given)
    assert ones.outputs.tolist() == [1, 1, 0, 1, 1, 1], "a sample of no updates has no answer"
    with pytest.raises(ValueError, match="one answer per sample"):
        BPTT()(model.cell, (h, h), None, STEPS, readout=lambda z, i, x, step: z[0].sum(), **given)


@pytest.mark.parametrize("save", ["last", "sum", "all"])
@pytest.mark.parametrize("couple", [lambda cell: cell, Damped])
@pytest.mark.parametrize("estimator", [BPTT(), CheckpointedBPTT(), TruncatedBPTT(2)], ids=str)
def test_a_batch_of_no_updates_has_answers_of_zeros(estimator, couple, save):
    model = Reader()
    h = model.first
    given = {"xs": model.xs, "readout": model.loss, "save": save, "lengths": [0] * len(LENGTHS)}
    rollout = estimator(couple(model.cell), (h, h), None, STEPS, **given)
    assert rollout.outputs.shape[-1] == len(LENGTHS) and not rollout.outputs.any()
    assert torch.equal(rollout.state[0], h)


def test_a_batch_of_no_updates_under_a_reversible_gradient():
    model = Reader()
    h, given = model.first, {"xs": model.xs, "readout": model.loss, "save": "sum", "lengths": [0] * len(LENGTHS)}
    assert not ReversibleBPTT()(Damped(model.cell), (h, h), None, STEPS, **given).outputs.any()


class Streams(nn.Module):
    """Two updates of z_L and one of z_H, each reading its own x."""

    period = 3

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(SIZE, SIZE).double()

    def forward(self, state, inputs, step):
        z_L, z_H = state["z_L"], state["z_H"]
        if step % 3 < 2:
            return {"z_L": torch.tanh(self.linear(z_L + z_H) + inputs), "z_H": z_H}
        return {"z_L": z_L, "z_H": torch.tanh(self.linear(z_L + z_H) + inputs)}


@pytest.mark.parametrize("scope", [BackwardSteps(3), LastOf({"z_L": 1})], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_scopes_of_streams_read_no_further_than_there_are_inputs(scope, steps):
    torch.manual_seed(0)
    cell, x = Streams(), torch.randn(steps, 2, SIZE, dtype=torch.float64)
    state = {name: torch.zeros(2, SIZE, dtype=torch.float64) for name in ("z_L", "z_H")}
    got = TruncatedBPTT(scope=scope)(cell, state, None, steps, xs=x)
    exact = BPTT()(cell, state, None, steps, xs=x).state
    assert all(torch.equal(got.state[name], z) for name, z in exact.items())
    assert got.stats.cell_evaluations == steps + min(steps, 3)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("with_xs", [True, False])
def test_forward_mode_looks_no_further_than_there_are_updates(steps, with_xs):
    torch.manual_seed(0)
    head, cell = nn.Linear(SIZE, 1).double(), Streams()
    x, inputs = torch.randn(steps, 2, SIZE, dtype=torch.float64), torch.zeros(2, SIZE, dtype=torch.float64)
    state = {name: torch.zeros(2, SIZE, dtype=torch.float64) for name in ("z_L", "z_H")}
    given = {"readout": lambda z, *_: head(z["z_L"])[:, 0], "save": "sum"} | ({"xs": x} if with_xs else {})
    found = []
    for estimator in (BPTT(), ForwardMode(["linear.bias"]), ForwardGradient(seed=0)):
        rollout = estimator(cell, state, None if with_xs else inputs, steps, **given)
        found.append(rollout.outputs)
    assert all(torch.equal(found[0], other) for other in found[1:])
