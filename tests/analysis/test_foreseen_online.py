"""What online gradients, steps of Newton and tangents take is foreseen: beside what a counter sees in a real step."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from loopgrad.analysis.cell_steps import step_of
from loopgrad.analysis.counters import PeakBytes
from loopgrad.analysis.plans import planned
from loopgrad.experiments.benches.cells import ResidualCell
from loopgrad.gradients import KFRTRL, RTRL, UORO, CheckpointedBPTT, DiagonalRTRL, ForwardGradient, ParallelNewton, SnAp

MiB = 2**20
ONLINE = {
    "RTRL": RTRL(),
    "SnAp": SnAp(1),
    "DiagonalRTRL": DiagonalRTRL(),
    "KFRTRL": KFRTRL(seed=0),
    "UORO": UORO(seed=0),
}
AT_ONCE = {
    "full": ParallelNewton(),
    "diagonal": ParallelNewton(jacobian="diagonal"),
    "damped": ParallelNewton(damping=1.0),
    "tangents": ForwardGradient(seed=0),
    "weights": ForwardGradient(num_tangents=4, perturb="weights", seed=0),
}


class Recurrent(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gru = nn.GRUCell(4, width)

    def forward(self, state, inputs, step):
        return self.gru(inputs, state)


class Tanh(nn.Linear):
    def forward(self, state, inputs, step):
        return torch.tanh(0.5 * super().forward(state))


CELLS = {  # what makes it, and shapes without the batch: state, inputs, one update's inputs
    "GRU, 8 wide": (lambda: Recurrent(8), (8,), None, (4,)),
    "GRU, 24 wide": (lambda: Recurrent(24), (24,), None, (4,)),
    "tanh": (lambda: Tanh(8, 8), (8,), None, None),
    "block": (lambda: ResidualCell(8, 2, torch.Generator().manual_seed(0)), (3, 8), (3, 8), None),
}


def step_at(cell, num_steps, every_update=False):
    make, state, inputs, xs = CELLS[cell]
    step = step_of(make, state, inputs, num_steps, xs, 0, None)

    def forward(made, estimator, num_steps):
        module, z, x, each = made
        given = {"readout": lambda z, *_: z.square().flatten(1).sum(1), "save": "sum"}
        rollout = estimator(module, z, x, num_steps, **({} if xs is None else {"xs": each}), **given)
        return rollout.outputs.mean(), rollout.stats

    return replace(step, forward=forward) if every_update else step


def measured(step, estimator, batch):
    torch.manual_seed(0)
    made = step.with_data(batch, step.num_steps)
    with PeakBytes() as live:
        loss, stats = step.forward(made, estimator, step.num_steps)
        loss.backward()
    return live.peak, stats


@pytest.mark.parametrize("every_update", [False, True], ids=["last loss", "every loss"])
@pytest.mark.parametrize(("batch", "num_steps"), [(4, 16), (32, 16), (4, 128)])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.slow
def test_bytes_and_counts_are_those_of_a_real_step(cell, batch, num_steps, every_update):
    estimators = AT_ONCE if cell == "block" else ONLINE | AT_ONCE
    if cell == "block" and num_steps > 16:  # on which Newton's method does not converge
        estimators = {name: it for name, it in AT_ONCE.items() if not isinstance(it, ParallelNewton)}
    step = step_at(cell, num_steps, every_update)
    for row in planned(step, estimators, 64 * MiB, batch):
        peak, stats = measured(step, estimators[row.name], batch)
        assert row.bytes == pytest.approx(peak, rel=0.05), row.name
        if row.name in ONLINE:
            assert (row.evaluations, row.vjps) == (stats.cell_evaluations, stats.vjps)
        else:
            assert row.evaluations >= stats.cell_evaluations and row.vjps >= stats.vjps


@pytest.mark.parametrize("estimator", [RTRL(), KFRTRL(seed=0), ParallelNewton()], ids=lambda it: type(it).__name__)
def test_the_largest_batch_of_what_follows_from_values_fits(estimator):
    step = step_at("GRU, 8 wide", 16)
    (row,) = planned(step, {"own": estimator}, MiB, 4)
    assert row.bytes == pytest.approx(measured(step, estimator, 4)[0], rel=0.02)
    peaks = [measured(step, estimator, row.largest_batch + more)[0] for more in (0, 1)]
    assert peaks[0] <= MiB < 1.01 * peaks[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ONLINE if name != "KFRTRL"])
def test_online_gradients_of_a_block_are_foreseen(name):
    step = step_at("block", 4)
    (row,) = planned(step, {name: ONLINE[name]}, MiB, 4)
    assert row.bytes == pytest.approx(measured(step, ONLINE[name], 4)[0], rel=0.02)


@pytest.mark.parametrize(
    ("cell", "estimator", "reason"),
    [
        ("block", KFRTRL(seed=0), "needs weights that an update multiplies with one vector"),
        ("tanh", RTRL(scope="batch"), "carries one matrix for all samples"),
        ("tanh", RTRL(max_numbers=1000), "would carry 18 tangents of 72 numbers and 4 states.*max_numbers=1000"),
        ("tanh", ParallelNewton(max_numbers=100), "would keep 4096 numbers.*max_numbers=100"),
    ],
)
def test_what_an_estimator_refuses_is_said_as_it_would(cell, estimator, reason):
    (row,) = planned(step_at(cell, 16), {"own": estimator}, MiB, 4)
    assert row.bytes is None and re.search(reason, row.remark)


def test_the_largest_batch_is_one_that_the_estimator_takes():
    (row,) = planned(step_at("tanh", 16), {"own": ParallelNewton(max_numbers=5000)}, MiB, 4)
    assert row.largest_batch == 5000 // (16 * 8 * 8)


def test_a_plan_draws_nothing_and_leaves_the_estimator_as_it_was():
    estimator = UORO(seed=3)
    before, drawn = estimator.generator.get_state(), torch.get_rng_state()
    planned(step_at("tanh", 4), {"own": estimator}, MiB, 4)
    assert torch.equal(estimator.generator.get_state(), before) and torch.equal(torch.get_rng_state(), drawn)


class Noisy(nn.Linear):
    def forward(self, state, inputs, step):
        return torch.tanh(super().forward(state) + 0.1 * torch.randn_like(state))


class Attending(nn.MultiheadAttention):
    def forward(self, state, inputs, step):
        return 0.1 * super().forward(state, state, state, need_weights=False)[0] + inputs


@pytest.mark.parametrize("drops", [0.0, 0.1])
def test_attention_draws_where_it_drops_something(drops):
    step = step_of(lambda: Attending(8, 2, dropout=drops, batch_first=True), (3, 8), (3, 8), 6, None, 0, None)
    (row,) = planned(step, {"own": ParallelNewton()}, 64 * MiB, 4)
    if drops:
        assert row.bytes is None and "draws random numbers" in row.remark
    else:
        assert row.bytes == pytest.approx(measured(step, ParallelNewton(), 4)[0], rel=0.02)


class LooksUp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.table, self.gru = nn.Embedding(50, width), nn.GRUCell(width, width)

    def forward(self, state, inputs, step):
        return self.gru(self.table(inputs), state)


IDS = torch.zeros((), dtype=torch.int64)


@pytest.mark.parametrize(
    ("make", "xs", "estimator", "reason"),
    [
        (lambda: Noisy(8, 8), None, ParallelNewton(), "an update of this cell draws random numbers"),
        (lambda: LooksUp(8), IDS, RTRL(), "which rows of a table the ints .* look up is not known"),
        (lambda: LooksUp(8), IDS, KFRTRL(seed=0), "which rows of a table the ints .* look up is not known"),
    ],
)
def test_what_shapes_do_not_tell_is_the_reason(make, xs, estimator, reason):
    drawn = torch.get_rng_state()
    (row,) = planned(step_of(make, (8,), None, 6, xs, 0, None), {"own": estimator}, MiB, 4)
    assert row.bytes is None and re.search(reason, row.remark) and torch.equal(torch.get_rng_state(), drawn)


class Gated(nn.Linear):
    """A branch whose weight begins at 0."""

    def __init__(self, width):
        super().__init__(width, width)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, state, inputs, step):
        return 0.9 * state + self.gate * torch.tanh(super().forward(state)) + inputs


def test_a_weight_that_begins_at_zero_is_foreseen_as_it_goes_on():
    step = step_of(lambda: Gated(6), (6,), (6,), 10, None, 0, None)
    (row,) = planned(step, {"own": RTRL()}, MiB, 4)
    module, *rest = step.with_data(4, 10)
    module.gate.detach().fill_(0.1)
    with PeakBytes() as live:
        step.forward((module, *rest), RTRL(), 10)[0].backward()
    assert row.bytes == pytest.approx(live.peak, rel=0.02)


class Normed(nn.Linear):
    """A weight that no tangent is drawn for: torch takes the device of its zeros from where it has none."""

    def __init__(self, width):
        super().__init__(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, state, inputs, step):
        return torch.tanh(self.norm(super().forward(state))) + inputs


@pytest.mark.parametrize("perturb", ["state", "weights"])
def test_tangents_through_a_norm_are_foreseen(perturb):
    step = step_of(lambda: Normed(8), (8,), (8,), 12, None, 0, None)
    estimator = ForwardGradient(seed=0, perturb=perturb)
    (row,) = planned(step, {"own": estimator}, MiB, 4)
    assert row.bytes == pytest.approx(measured(step, estimator, 4)[0], rel=0.02)


class Squashed(nn.Linear):
    def forward(self, state, inputs, step):
        return torch.tanh(super().forward(state) + inputs)


@pytest.mark.parametrize("estimator", [RTRL(), SnAp(1), KFRTRL(seed=0)], ids=lambda it: type(it).__name__)
def test_weights_of_bfloat16_are_foreseen(estimator):
    shape = torch.zeros(8, dtype=torch.bfloat16)
    step = step_of(lambda: Squashed(8, 8).bfloat16(), shape, shape, 6, None, 0, None)
    (row,) = planned(step, {"own": estimator}, MiB, 4)
    assert row.bytes == pytest.approx(measured(step, estimator, 4)[0], rel=0.02)


@pytest.mark.parametrize("estimator", [RTRL(), CheckpointedBPTT()], ids=lambda it: type(it).__name__)
def test_tensors_that_require_no_grad_are_foreseen_as_data(estimator):
    data, taken = torch.zeros(8), []
    for given in (data, data.clone().requires_grad_(), (8,)):
        step = step_of(lambda: Squashed(8, 8), given, given, 6, None, 0, None)
        (row,) = planned(step, {"own": estimator}, MiB, 4)
        assert row.bytes == pytest.approx(measured(step, estimator, 4)[0], rel=0.02)
        taken.append(row.bytes)
    assert taken[0] < taken[1] == taken[2]
