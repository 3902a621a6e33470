"""Checkpoints in a short form: the gradient by hand over rounded states, its error, bytes by their law."""

import math
from functools import partial

import pytest
import torch
from cells import build
from problems import leaves_of, loss_of
from torch import nn

from loopgrad.analysis import measure
from loopgrad.analysis.counters import PeakBytes, SavedBytes
from loopgrad.analysis.foreseen import foreseen_by_batch
from loopgrad.gradients import BPTT, CheckpointedBPTT, Stationary, budget
from loopgrad.gradients.compression import FORMS, Rounded
from loopgrad.gradients.contract import Stats
from loopgrad.gradients.functional_cell import FunctionalCell


def by_hand(z, kept):
    """What a stored state is restored to, written out."""
    if kept == "bfloat16":
        return z.bfloat16().to(z.dtype)
    wide = z.to(torch.promote_types(z.dtype, torch.float32))  # units of float64 are kept in float64
    unit = wide.abs().max(dim=-1, keepdim=True).values / 127
    return (wide / unit).round().mul(unit).to(z.dtype)


def restored(z, first, kept):
    """z_0 is there anyway, and so is what is still z_0; three numbers and a count have no short form."""
    return by_hand(z, kept) if z.shape[-1] == 12 and z is not first else z


class Two(nn.Module):
    """A stream of 12 features that goes on, one that every third update writes, three numbers and a count."""

    period = 3

    def __init__(self):
        super().__init__()
        self.fast, self.slow = (nn.Linear(12, 12, dtype=torch.float64) for _ in range(2))

    def forward(self, state, inputs, step):
        fast, slow, few, count = state
        fast = torch.tanh(self.fast(fast) + slow + few.sum(-1, keepdim=True) + inputs)
        slow = torch.tanh(self.slow(slow) + fast) if step % 3 == 2 else slow
        return fast, slow, 0.9 * few + 0.1 * fast[:, :3], count + 1


def two():
    torch.manual_seed(0)
    cell = Two()
    state = tuple(torch.randn(5, n).double().requires_grad_() for n in (12, 12, 3))
    return cell, (*state, torch.zeros(5, dtype=torch.int64)), torch.randn(5, 12).double().requires_grad_()


def gradient_of(state, sources):
    weights = torch.linspace(-1, 1, 12, dtype=torch.float64)
    loss = ((state[0] + state[1]) * weights).sum() + state[
        2
    ].sum()  # linear, so that its gradient is everywhere the same
    return torch.autograd.grad(loss, sources)


@pytest.mark.parametrize("kept", FORMS)
@pytest.mark.parametrize(("num_steps", "length"), [(14, 4), (9, 3), (5, 9), (7, 1)])
def test_gradient_is_that_by_hand_over_rounded_states(kept, num_steps, length):
    cell, state, x = two()
    sources = [x, *state[:3], *cell.parameters()]
    rollout = CheckpointedBPTT(length, kept=kept)(cell, state, x, num_steps)
    plain = BPTT()(cell, state, x, num_steps)
    assert all(map(torch.equal, rollout.state, plain.state))
    ours = gradient_of(rollout.state, sources)
    # a value that is z as backward meets it and has the derivative of the identity
    exact, now = list(state), state
    for step in range(num_steps):
        if step and step % length == 0:
            now = [
                z + (restored(before, first, kept) - z).detach()
                for z, before, first in zip(now, exact, state, strict=True)
            ]
        now = cell(tuple(now), x, step)
        with torch.no_grad():
            after = cell(tuple(exact), x, step)
        exact = [a if i != 1 or step % 3 == 2 else exact[1] for i, a in enumerate(after)]
    for own, witness in zip(ours, gradient_of(now, sources), strict=True):
        torch.testing.assert_close(own, witness, rtol=1e-12, atol=1e-12)


def test_a_state_stored_in_one_place_twice_is_stored_once():
    cell, state, x = two()
    saved = SavedBytes(exclude=[x, *cell.parameters(), *state])
    with saved:
        rollout = CheckpointedBPTT(1, kept="bfloat16")(cell, state, x, 12)
    # eleven states of the fast stream, of three float64 and of a count; the slow one has three values beside z_0's
    assert saved.held() == 11 * (5 * 12 * 2 + 5 * 3 * 8 + 5 * 8) + 3 * 5 * 12 * 2
    assert rollout.state[1].requires_grad


@pytest.mark.parametrize("schedule", [{"schedule": 4}, {"schedule": "binomial", "num_snapshots": 2}])
def test_the_error_falls_with_the_bits_that_are_kept(monkeypatch, schedule):
    """To first order it is in proportion to the rounding: 8 bits, 11 and 24."""
    cell, state, x = two()
    sources, wrong = [x, *cell.parameters()], []
    exact = torch.cat([it.flatten() for it in gradient_of(BPTT()(cell, state, x, 24).state, sources)])
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        monkeypatch.setitem(FORMS, "bfloat16", Rounded(dtype))
        ours = gradient_of(CheckpointedBPTT(**schedule, kept="bfloat16")(cell, state, x, 24).state, sources)
        wrong.append(float(torch.dist(torch.cat([it.flatten() for it in ours]), exact) / exact.norm()))
    assert 0 < wrong[0] < 0.1
    assert 2**3 / 3 < wrong[0] / wrong[1] < 2**3 * 3 and 2**13 / 3 < wrong[1] / wrong[2] < 2**13 * 3


def wide(batch=64):
    torch.manual_seed(0)
    linear = nn.Linear(32, 32)
    cell = Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear)
    return cell, torch.randn(batch, 32), torch.randn(batch, 32)


@pytest.mark.parametrize("num_steps", [16, 64, 256])
@pytest.mark.parametrize(("kept", "each"), [(None, 64 * 32 * 4), ("bfloat16", 64 * 32 * 2), ("int8", 64 * (32 + 4))])
def test_bytes_follow_their_law(kept, each, num_steps):
    cell, z, x = wide()
    for estimator, stored in (
        (CheckpointedBPTT(kept=kept), math.isqrt(num_steps) - 1),
        (CheckpointedBPTT(1, kept=kept), num_steps - 1),
        # and the working state
        (CheckpointedBPTT("binomial", num_snapshots=3, kept=kept), 4),
    ):
        saved = SavedBytes(exclude=[*cell.parameters(), z, x])
        with saved:
            rollout = estimator(cell, z, x, num_steps)
        assert saved.held() == stored * each
        assert rollout.stats.vjps == num_steps


@pytest.mark.parametrize("kept", FORMS)
@pytest.mark.parametrize("num_steps", [64, pytest.param(1024, marks=pytest.mark.slow)])
@pytest.mark.parametrize("snapshots", [0, 2, 9])
def test_a_budget_counts_short_states_and_is_honoured(kept, num_steps, snapshots):
    cell, z, x = wide()
    functional = FunctionalCell(cell, z, x)
    estimator = CheckpointedBPTT(kept=kept)
    footprint = budget.trace(functional, num_steps, estimator.states(functional), Stats(0, 0))
    assert footprint.snapshot == {"bfloat16": 64 * 32 * 2, "int8": 64 * (32 + 4)}[kept]
    size = footprint.cut(snapshots, 1)
    with PeakBytes() as peak:
        rollout = CheckpointedBPTT(memory_budget=size, kept=kept)(cell, z, x, num_steps)
        loss_of(rollout.state).backward()
    assert peak.peak <= size
    if snapshots:  # as many states as they are would need more
        plain = CheckpointedBPTT(memory_budget=size)(cell, z, x, num_steps)
        assert plain.stats.cell_evaluations > rollout.stats.cell_evaluations


@pytest.mark.parametrize("kept", FORMS)
@pytest.mark.parametrize("schedule", [{}, {"schedule": 1}, {"schedule": "binomial", "num_snapshots": 2}])
@pytest.mark.one_in(3)
def test_what_is_foreseen_without_data_is_measured_to_the_byte(kept, schedule):
    estimator = CheckpointedBPTT(**schedule, kept=kept)

    def loss(made):
        cell, z, x = made
        return estimator(cell, z, x, 20).state.square().sum()

    growing, _ = foreseen_by_batch(wide, lambda made: loss(made).backward())
    for batch in (3, 64):
        assert growing.at(batch) == measure(partial(loss, wide(batch)), repeats=0, warmup=0).peak_bytes


@pytest.mark.parametrize("name", ["two_streams", "dropout", "buffers", "no_inputs"])
@pytest.mark.parametrize("kept", FORMS)
def test_what_is_stored_as_it_is_leaves_bptts_bits(name, kept):
    """One segment starts from z_0, and rows of fewer than eight numbers have no short form."""
    found = []
    for estimator in (BPTT(), CheckpointedBPTT(64, kept=kept), CheckpointedBPTT(3, kept=kept)):
        problem = build(name, torch.float32)
        assert max(leaf.shape[-1] for leaf in leaves_of(problem.state)) < 8
        torch.manual_seed(3)
        state = estimator(problem.cell, problem.state, problem.inputs, 8).state
        found.append(torch.autograd.grad(loss_of(state), list(problem.sources().values()), allow_unused=True))
    for ours in found[1:]:
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(ours, found[0], strict=True))


class Counting(nn.Module):
    """Gives other values from call to call."""

    def __init__(self):
        super().__init__()
        self.linear, self.calls = nn.Linear(16, 16), 0

    def forward(self, state, inputs, step):
        self.calls += 1
        return torch.tanh(self.linear(state) + 0.1 * self.calls)


@pytest.mark.parametrize(
    "estimator",
    [CheckpointedBPTT(kept="int8"), CheckpointedBPTT("binomial", num_snapshots=2, kept="int8")],
    ids=["sqrt", "binomial"],
)
def test_a_first_segment_that_is_not_met_again_is_refused(estimator):
    state = estimator(Counting(), torch.zeros(2, 16), None, 30).state
    with pytest.raises(RuntimeError, match="other values when it was run again"):
        state.sum().backward()


def test_claims_are_those_of_what_is_kept():
    short, whole = CheckpointedBPTT(kept="int8"), CheckpointedBPTT()
    assert (short.kind, whole.kind, CheckpointedBPTT.kind) == ("biased", "exact", "exact")
    assert short.memory == "O(sqrt T)" and short != whole
    with pytest.raises(ValueError, match="int4"):
        CheckpointedBPTT(kept="int4")
