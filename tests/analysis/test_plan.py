"""What is foreseen without data is what is measured with it: three cells, five estimators; and what cannot is said."""

import time
from functools import partial

import pytest
import torch
from torch import nn

from loopgrad.analysis import cell_steps, plan, plans
from loopgrad.analysis.counters import PeakBytes
from loopgrad.analysis.foreseen import BATCH, foreseen_by_batch
from loopgrad.analysis.plans import cheapest_exact
from loopgrad.analysis.shorter import Traced, largest, of_length
from loopgrad.experiments.benches.cells import ResidualCell
from loopgrad.gradients import (
    BPTT,
    CheapestExact,
    CheckpointedBPTT,
    ForwardGradient,
    ImplicitGradient,
    LowRankES,
    PhantomGradient,
    ReversibleBPTT,
    TruncatedBPTT,
)

MiB = 2**20


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRUCell(16, 16)

    def forward(self, state, inputs, step):
        return self.gru(inputs, state)


class TwoStreams(nn.Module):
    period = 3

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(24, 48), nn.SiLU(), nn.Linear(48, 24))

    def forward(self, state, inputs, step):
        if step % 3 < 2:
            return {**state, "z_L": torch.tanh(self.net(state["z_L"] + state["z_H"] + inputs))}
        return {**state, "z_H": torch.tanh(self.net(state["z_L"] + state["z_H"]))}


def attention():
    return ResidualCell(16, 2, torch.Generator().manual_seed(0))


CELLS = {  # what makes it, and shapes without the batch: state, inputs, one update's inputs; updates
    "recurrent": (Recurrent, (16,), None, (16,), 40),
    "two_streams": (TwoStreams, {"z_L": (5, 24), "z_H": (5, 24)}, (5, 24), None, 12),
    "attention": (attention, (6, 16), (6, 16), None, 20),
}
ESTIMATORS = {
    "BPTT": BPTT(),
    "CheckpointedBPTT": CheckpointedBPTT(),
    "CheckpointedBPTT(3)": CheckpointedBPTT(3),
    "CheckpointedBPTT(3, int8)": CheckpointedBPTT(3, kept="int8"),
    "last cycle": TruncatedBPTT(num_cycles=1),
    "phantom": PhantomGradient(num_steps=2, damping=0.5),
}


def tensors(shapes, *front):
    if isinstance(shapes, dict):
        return {key: tensors(value, *front) for key, value in shapes.items()}
    return None if shapes is None else torch.zeros(*front, *shapes, requires_grad=True)


def measured(cell, estimator, batch):
    make, state, inputs, xs, num_steps = CELLS[cell]
    module, z, x = make(), tensors(state, batch), tensors(inputs, batch)
    each = {} if xs is None else {"xs": tensors(xs, num_steps, batch)}
    with PeakBytes() as live:
        rollout = estimator(module, z, x, num_steps, **each)
        stats, loss = rollout.stats, loss_of(rollout.state)
        del rollout
        loss.backward()
    return live.peak, stats


def loss_of(last):
    return sum(leaf.square().mean() for leaf in (last.values() if isinstance(last, dict) else [last]))


def foreseen_rows(cell, estimators, batch, budget=64 * MiB):
    make, state, inputs, xs, num_steps = CELLS[cell]
    given = {"estimators": estimators, "batch_size": batch, "copies": 0}
    return plan(make, state, inputs, num_steps, budget, xs=xs, **given)


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param("recurrent", marks=pytest.mark.slow),
        "two_streams",
        pytest.param("attention", marks=pytest.mark.slow),
    ],
)
def test_bytes_evaluations_and_vjps_are_those_of_a_real_step(cell):
    began = time.process_time()
    rows = foreseen_rows(cell, ESTIMATORS, 4)
    assert time.process_time() - began < 10
    assert {row.name for row in rows} == ESTIMATORS.keys()
    for row in rows:
        peak, stats = measured(cell, ESTIMATORS[row.name], 4)
        assert row.bytes == pytest.approx(peak, rel=0.03), row.name
        assert (row.evaluations, row.vjps) == (stats.cell_evaluations, stats.vjps)


@pytest.mark.parametrize("batch", [1, 64])
def test_one_trace_tells_of_every_batch(batch):
    for row in foreseen_rows("two_streams", {"BPTT": BPTT(), "phantom": ESTIMATORS["phantom"]}, batch):
        assert row.bytes == pytest.approx(measured("two_streams", ESTIMATORS[row.name], batch)[0], rel=0.03)


def test_the_largest_batch_fits_and_one_more_does_not():
    (row,) = foreseen_rows("two_streams", {"BPTT": BPTT()}, 4, 4 * MiB)
    peaks = [measured("two_streams", BPTT(), row.largest_batch + more)[0] for more in (0, 1)]
    assert peaks[0] <= 4 * MiB < peaks[1] + 0.01 * MiB


def test_of_exact_ones_that_fit_the_cheapest_is_found():
    whole = measured("two_streams", BPTT(), 32)[0]
    estimators = {"BPTT": BPTT(), "CheckpointedBPTT": CheckpointedBPTT(), "one": TruncatedBPTT(num_steps=1)}
    for budget, best in ((1.1 * whole, "BPTT"), (0.9 * whole, "CheckpointedBPTT")):
        rows = foreseen_rows("two_streams", estimators, 32, int(budget))
        assert cheapest_exact(rows).name == best
    assert [row.fits for row in rows] == [True, True, False] and rows[0].name == "one"
    assert cheapest_exact(foreseen_rows("two_streams", estimators, 32, 1000)) is None


@pytest.mark.parametrize("own", [CheapestExact, partial(CheckpointedBPTT, kept="int8")])
def test_a_budget_of_its_own_is_what_is_left_and_the_step_stays_within(own):
    budget = 2 * MiB
    (row,) = foreseen_rows("attention", {"auto": own(memory_budget="1GiB")}, 16, budget)
    peak, stats = measured("attention", own(memory_budget=row.room), 16)
    assert row.fits and peak <= budget and row.room <= budget
    assert row.bytes == pytest.approx(peak, rel=0.1)
    assert (row.evaluations, row.vjps) == (stats.cell_evaluations, stats.vjps)
    assert row.evaluations > 21  # all graphs do not fit


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "estimator",
    [
        BPTT(),
        CheckpointedBPTT(),
        CheckpointedBPTT(7),
        CheckpointedBPTT(kept="int8"),
        TruncatedBPTT(num_steps=9),
        PhantomGradient(num_steps=3, damping=0.5),
    ],
    ids=repr,
)
def test_long_recursions_follow_from_short_ones(estimator):
    step = cell_steps.step_of(TwoStreams, *CELLS["two_streams"][1:3], 60, None, 0, None)

    def trace(how, length):
        assert length < 60
        return plans._trace(step, how, length)

    found = of_length(trace, estimator, 60, 3, 12)
    module, z, x = TwoStreams(), tensors(CELLS["two_streams"][1], 8), tensors((5, 24), 8)
    with PeakBytes() as live:
        rollout = estimator(module, z, x, 60)
        stats, loss = rollout.stats, loss_of(rollout.state)
        del rollout
        loss.backward()
    assert found.at(8) == pytest.approx(live.peak, rel=0.1)
    assert (found.evaluations, found.vjps) == (stats.cell_evaluations, stats.vjps)


def test_what_data_decide_is_taken_at_its_most():
    estimator = ImplicitGradient(rtol=0, max_vjps=5, check_every=None, on_unconverged="ignore")
    (row,) = foreseen_rows("attention", {"implicit": estimator}, 4)
    peak, stats = measured("attention", estimator, 4)
    assert row.bytes >= 0.97 * peak and row.vjps >= stats.vjps and row.evaluations >= stats.cell_evaluations


def test_forward_gradients_are_foreseen_with_the_zeros_that_tangents_begin_with():
    estimator = ForwardGradient(num_tangents=8, seed=0)
    (row,) = foreseen_rows("two_streams", {"forward": estimator}, 4)
    assert row.bytes == pytest.approx(measured("two_streams", estimator, 4)[0], rel=0.01)


@pytest.mark.parametrize(
    "estimator",
    [
        LowRankES(population=3, chunk=1, seed=0),
        pytest.param(LowRankES(population=12, chunk=5, seed=0), marks=pytest.mark.slow),
        pytest.param(LowRankES(population=3, chunk=2, seed=0), marks=pytest.mark.slow),
        pytest.param(LowRankES(None, 40, antithetic=False, seed=0), marks=pytest.mark.slow),
        pytest.param(LowRankES(2, 6, scope="batch", seed=0), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_of_evolution_strategies_two_chunks_are_traced(estimator):
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        asked = Recurrent.forward
        patch.setattr(Recurrent, "forward", lambda *given: calls.append(1) or asked(*given))
        (row,) = foreseen_rows("recurrent", {"es": estimator}, 4)
    assert len(calls) <= 1 + 5 * 40  # a trial, the recursion, and two chunks both ways
    peak, stats = measured("recurrent", estimator, 4)
    assert row.bytes == pytest.approx(peak, rel=0.02)
    assert (row.evaluations, row.vjps) == (stats.cell_evaluations, 0)


def test_what_an_estimator_cannot_do_is_said_and_the_others_are_foreseen():
    rows = foreseen_rows("attention", {"reversible": ReversibleBPTT(), "BPTT": BPTT()}, 4)
    assert [row.name for row in rows] == ["BPTT", "reversible"]
    assert "needs a cell that can be undone" in rows[1].remark and rows[1].bytes is None and not rows[1].fits


class Asks(nn.Linear):
    def forward(self, state, inputs, step):
        return state if state.sum() > 0 else super().forward(state)


class Counts(nn.Linear):
    def forward(self, state, inputs, step):
        return super().forward(state) + state[state > 0].sum()


@pytest.mark.parametrize("kind", [Asks, Counts])
def test_a_cell_that_asks_for_values_is_refused_with_a_remedy(kind):
    with pytest.raises(ValueError, match="asks for values of tensors.*loopgrad.analysis.measure"):
        plan(lambda: kind(4, 4), (4,), None, 3, "1GiB")


@pytest.mark.parametrize(
    ("cell", "state", "error", "words"),
    [
        (lambda: nn.Linear(4, 4), (4,), ValueError, "fails on these shapes"),
        (Recurrent, (17,), ValueError, "fails on these shapes.*check state"),
        (lambda: 3, (4,), TypeError, "must be a module, or a class or function that makes one, got int"),
    ],
)
def test_what_is_no_cell_or_does_not_fit_is_named(cell, state, error, words):
    with pytest.raises(error, match=words):
        plan(cell, state, None, 3, "1GiB", xs=(16,) if cell is Recurrent else None)


def test_shapes_that_do_not_fit_each_other_are_told_in_the_message_alone(caplog):
    with pytest.raises(ValueError, match=r"fails on these shapes: .*batch, 5, 23") as caught:
        plan(TwoStreams, {"z_L": (5, 24), "z_H": (5, 24)}, (5, 23), 3, "1GiB")
    assert caplog.text == "" and str(BATCH) not in str(caught.value)


@pytest.mark.parametrize("budget", ["24Gip", "-1GiB", 0, True, ""])
def test_a_budget_that_is_none_is_named(budget):
    with pytest.raises(ValueError, match="memory_budget=.*must be a positive number of bytes"):
        plan(Recurrent, (16,), None, 3, budget, xs=(16,))


def test_a_module_is_left_as_it_was():
    module = TwoStreams()
    module.net[0].weight.grad = torch.ones(48, 24)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    plan(module, *CELLS["two_streams"][1:3], 6, "1GiB", estimators={"BPTT": BPTT()})
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(module.net[0].weight.grad, torch.ones(48, 24)) and module.net[0].bias.grad is None


def test_bytes_of_one_trace_are_linear_where_one_operator_is():
    def make(batch):
        return torch.zeros(batch, 3)

    found, _ = foreseen_by_batch(make, lambda x: (x + 1, torch.ones(5)))
    assert (found.at(1), found.at(10)) == (12 + 20, 120 + 20)


@pytest.mark.parametrize("most", [0, 1, 2, 3, 17, 1000])
def test_the_largest_batch_is_found_by_halving(most):
    assert largest(lambda batch: batch <= most) == most


def test_a_short_recursion_is_traced_itself():
    seen = []

    def trace(estimator, length):
        seen.append(length)
        return Traced((), length, length)

    assert of_length(trace, BPTT(), 9, 3, 1).evaluations == 9 and seen == [9]
