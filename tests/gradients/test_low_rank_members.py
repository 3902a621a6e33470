"""Low-rank evolution strategies through torch's recurrent cells, and with several perturbations at once."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from loopgrad.gradients import BPTT, LowRankES
from loopgrad.gradients.carried_products import Factors
from tests.gradients.test_low_rank import Cell, dense, problem

KINDS = {
    "gru": (nn.GRUCell, {}),
    "tanh": (nn.RNNCell, {}),
    "relu": (nn.RNNCell, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTMCell, {}),
}


class Recurrent(nn.Module):
    """A cell of torch, the halves of an LSTM's state side by side."""

    def __init__(self, kind="gru", size=6, bias=True):
        super().__init__()
        maker, more = KINDS[kind]
        self.inner, self.kind = (
            maker(size, size if kind != "lstm" else size // 2, bias, dtype=torch.float64, **more),
            kind,
        )

    def forward(self, state, inputs, step):
        if self.kind == "lstm":
            return torch.cat(self.inner(inputs, tuple(state.chunk(2, 1))), 1)
        return self.inner(inputs, state)


def given(cell):
    _, z, x, weight = problem()
    return cell, z, x, weight


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_cells_of_torch_equal_dense_perturbations_of_the_same_draws(kind, bias, monkeypatch):
    torch.manual_seed(0)
    for rank, chunk in ((1, 1), (2, 1), (1, 3), (2, 2)):
        estimator = LowRankES(rank, population=3, chunk=chunk, seed=0)
        found, expected, first = dense(estimator, *given(Recurrent(kind, bias=bias)), monkeypatch)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * float(b.abs().max()))
        assert [isinstance(it, Factors) for it in first] == [False, False, True, True, *[False] * (2 * bias)]


def test_without_a_rank_matrices_are_perturbed_densely(monkeypatch):
    torch.manual_seed(0)
    for make in (Cell, Recurrent):
        for chunk in (1, 2):
            found, expected, first = dense(
                LowRankES(None, population=3, chunk=chunk, seed=0), *given(make()), monkeypatch
            )
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))
            assert not any(isinstance(it, Factors) for it in first)


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_weights_a_cell_of_torch_runs_as_it_is(kind):
    cell, z, x, _ = given(Recurrent(kind))
    assert torch.equal(LowRankES(seed=0, chunk=4)(cell, z, x, 5).state, BPTT()(cell, z, x, 5).state)


@pytest.mark.parametrize("which", ["w_ih", "w_hh", "both"])
def test_a_cell_whose_weights_are_frozen_or_read_otherwise_too(which, monkeypatch):
    class Reads(Recurrent):
        def forward(self, state, inputs, step):
            return super().forward(state, inputs, step) + 0.1 * self.inner.weight_hh.mean()

    cell = Reads()
    for chunk in (1, 3):
        estimator = LowRankES(population=3, chunk=chunk, seed=0)
        found, expected, first = dense(estimator, *given(cell), monkeypatch)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 * float(b.abs().max()))
        assert isinstance(first[2], Factors) and not isinstance(first[3], Factors)
    for name, weight in (("w_ih", cell.inner.weight_ih), ("w_hh", cell.inner.weight_hh)):
        weight.requires_grad_(which not in (name, "both"))
    found = [at_once(cell, chunk, given(cell)[1:]) for chunk in (1, 3)]
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def at_once(cell, chunk, rest, antithetic=True):
    z, x, weight = rest
    sources = [z, x, *(p for p in cell.parameters() if p.requires_grad)]
    estimator = LowRankES(population=7, chunk=chunk, seed=0, antithetic=antithetic)
    return torch.autograd.grad((estimator(cell, z, x, 4).state * weight).sum(), sources)


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("make", [Cell, Recurrent, lambda: Recurrent("lstm")])
def test_the_gradient_does_not_depend_on_how_many_run_at_once(make, antithetic):
    torch.manual_seed(0)
    cell, *rest = given(make())
    found = [at_once(cell, chunk, rest, antithetic) for chunk in (1, 5, 100)]
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("save", ["sum", "all", "last"])
def test_with_an_input_per_update_and_answers(save):
    torch.manual_seed(0)
    cell, head = Recurrent(), nn.Linear(6, 3, dtype=torch.float64)
    xs, z = torch.randn(4, 4, 6, dtype=torch.float64, requires_grad=True), torch.zeros(4, 6, dtype=torch.float64)
    labels = torch.randint(3, (4, 4))

    def readout(state, inputs, x, step):  # closes over the batch, and over weights that nobody has passed
        logits = head(state)
        return F.cross_entropy(logits, labels[step], reduction="none"), logits.argmax(-1) == labels[step]

    found, stats = [], []
    for chunk in (1, 5):
        estimator = LowRankES(population=7, chunk=chunk, seed=0)
        rollout = estimator(cell, z, None, 4, xs=xs, readout=readout, save=save)
        losses, right = rollout.outputs
        found.append(torch.autograd.grad(losses.sum(), [xs, *cell.parameters(), *head.parameters()]))
        stats.append((rollout.stats.cell_evaluations, rollout.stats.vjps))
        assert not right.is_floating_point()
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
    assert stats[0] == stats[1]


def test_one_coefficient_for_the_batch_and_states_of_any_shape():
    linear = nn.Linear(3, 3, dtype=torch.float64)

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear

        def forward(self, state, inputs, step):
            mean = state["z"].mean(0)
            z = torch.tanh(self.linear(state["z"]) + self.linear(state["one"]) + mean)
            return {"z": z, "one": torch.tanh(self.linear(state["one"])), "count": state["count"] + 1, "none": None}

    found = []
    for chunk in (1, 3):
        torch.manual_seed(0)
        state = {"z": torch.randn(2, 4, 3, dtype=torch.float64), "one": torch.ones(3, dtype=torch.float64)}
        state |= {"count": torch.zeros((), dtype=torch.int64), "none": None}
        last = LowRankES(population=4, chunk=chunk, seed=0, scope="batch")(Mixed(), state, None, 3).state
        assert int(last["count"]) == 3 and last["none"] is None
        found.append(torch.autograd.grad(last["z"].square().sum() + last["one"].sum(), list(linear.parameters())))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


class Draws(Recurrent):
    def forward(self, state, inputs, step):
        return F.dropout(super().forward(state, inputs, step), 0.2)


class Writes(Recurrent):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6, dtype=torch.float64))

    def forward(self, state, inputs, step):
        self.mean.copy_(state.mean(0))
        return super().forward(state, inputs, step) + 0.1 * self.mean


class Looks(Recurrent):
    def forward(self, state, inputs, step):
        return super().forward(state, inputs, step) * (1 if float(state.sum()) > 0 else 2)


@pytest.mark.parametrize("make", [Draws, Writes, Looks])
def test_a_cell_that_cannot_run_for_several_at_once_is_refused_and_left_as_it_was(make):
    cell, *rest = given(make())
    before = {name: value.clone() for name, value in cell.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"LowRankES\(chunk=\.\.\.\).*take chunk=1"):
        at_once(cell, 3, rest)
    if make is not Writes:  # whose run at the weights has written, as any
        assert all(torch.equal(value, before[name]) for name, value in cell.state_dict().items())
    assert torch.overrides._len_torch_function_stack() == 0 and torch.is_grad_enabled()
    at_once(cell, 1, rest)
