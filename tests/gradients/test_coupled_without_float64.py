"""Couplings that keep their grid in int64, with float64 forbidden, against the same in float64."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from problems import leaves_of
from reversible_cases import Mixing
from torch import nn
from undoing import same_state
from without_float64 import Forbidden, without_float64

from loopgrad.gradients import BPTT, CheckpointedBPTT, ReversibleBPTT, Stationary, tree
from loopgrad.models import Damped, Leapfrog, Momentum
from loopgrad.models.coupled_state import Coupled

COUPLINGS = {
    "damped 1/2": lambda cell, **more: Damped(cell, **more),
    "damped 4/5": lambda cell, **more: Damped(cell, "4/5", **more),
    "damped 7/8": lambda cell, **more: Damped(cell, "7/8", **more),
    "leapfrog": lambda cell, **more: Leapfrog(cell, 0.03, **more),
    "momentum 7/8": lambda cell, **more: Momentum(cell, "7/8", **more),
}
every_coupling = pytest.mark.parametrize("coupling", COUPLINGS)
some_couplings = pytest.mark.parametrize(
    "coupling", [n if i < 2 else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(COUPLINGS)]
)
LOW, MIDDLE = torch.bfloat16, torch.float32


@dataclass
class Latent:
    z: torch.Tensor
    y: torch.Tensor
    total: torch.Tensor
    count: int


class OfParts(nn.Module):
    """A bounded cell of two tensors, given by a tree that holds more; a sum and a counter are not coupled."""

    def __init__(self, apart, together, dtypes=(MIDDLE, MIDDLE)):
        super().__init__()
        self.inner, self.apart, self.together, self.dtypes = Mixing(4).to(dtypes[0]), apart, together, dtypes

    def forward(self, state, inputs, step):
        z, y, total, count = self.apart(state)
        assert (z.dtype, y.dtype) == self.dtypes
        new = self.inner(z, inputs.to(z.dtype), step)
        return self.together(
            state, new, torch.sin(y + new.to(y.dtype)), total + new.float().square().sum(-1), count + 1
        )


STATES = {
    "tensor": None,
    "bf16": None,
    "tuple": (lambda s: s, lambda s, *parts: parts, (MIDDLE, LOW)),
    "dict": (
        lambda s: (*s["both"], s["total"], s["count"]),
        lambda s, z, y, total, count: {"both": [z, y], "total": total, "count": count},
    ),
    "dataclass": (
        lambda s: (s.z, s.y, s.total, s.count),
        lambda s, z, y, total, count: replace(s, z=z, y=y, total=total, count=count),
    ),
}
APART = {"tuple": "state[2]", "dict": "state['total']", "dataclass": "state.total"}
FULL = pytest.param(256, marks=pytest.mark.slow)
every_state = pytest.mark.parametrize("kind", STATES)


def problem(coupling, kind):
    torch.manual_seed(0)
    if STATES[kind] is None:
        dtype = LOW if kind == "bf16" else MIDDLE
        cell, state = Mixing(4).to(dtype), torch.randn(3, 4).to(dtype).requires_grad_()
        return COUPLINGS[coupling](cell), state, torch.randn(3, 4).to(dtype).requires_grad_()
    cell = OfParts(*STATES[kind])
    z, y = (torch.randn(3, 4).to(dtype).requires_grad_() for dtype in cell.dtypes)
    state = Latent(z, y, torch.zeros(3).requires_grad_(), 0)
    if kind != "dataclass":
        state = cell.together(None, z, y, state.total, 0)
    return COUPLINGS[coupling](cell, uncoupled=APART[kind]), state, torch.randn(3, 4).requires_grad_()


def outcome(estimator, coupling, kind, num_steps):
    """The last state, and the gradients by the floating leaves of the first, the input and the parameters."""
    cell, state, x = problem(coupling, kind)
    last = estimator(cell, state, x, num_steps).state
    loss = sum(leaf.float().sin().sum() for leaf in leaves_of(last) if leaf.is_floating_point())
    return leaves_of(last), torch.autograd.grad(loss, [*leaves_of(state), x, *cell.parameters()])


def updates(coupling, kind, num_steps):
    cell, state, x = problem(coupling, kind)
    with torch.no_grad():
        for step in range(num_steps):
            state = cell(state, x, step)
            yield cell.read(state), state


def on_the_grid(state: Coupled) -> list[torch.Tensor]:
    """The coupled leaves and the lost digits in float64, whatever the state keeps them in."""
    copies = [tree.flatten(copy)[0] for copy in (state.current, state.other)]
    leaves = [leaf.double() for copy in copies for leaf, pair in zip(copy, copies[1], strict=True) if pair is not None]
    if state.tails:
        leaves = [leaf + tail.double() / 2**32 for leaf, tail in zip(leaves, leaves_of(state.tails), strict=True)]
    return leaves + [digits.double() for digits in leaves_of(state.lost)]


@every_coupling
@every_state
@pytest.mark.parametrize("num_steps", [17, FULL])
def test_every_state_is_that_of_float64_to_the_bit(coupling, kind, num_steps):
    with without_float64():
        mine = list(updates(coupling, kind, num_steps))
    for (plain, state), (true, wide) in zip(mine, updates(coupling, kind, num_steps), strict=True):
        assert same_state(plain, true)
        assert all(map(torch.equal, on_the_grid(state), on_the_grid(wide)))
        assert state.tails and not wide.tails


@pytest.mark.one_in(2)
@some_couplings
@every_state
@pytest.mark.parametrize("num_steps", [9, FULL])
def test_undoing_and_checkpoints_give_the_gradient_of_bptt_to_the_bit(coupling, kind, num_steps):
    with without_float64():
        bptt = outcome(BPTT(), coupling, kind, num_steps)
        for estimator in (ReversibleBPTT(anchors=7), ReversibleBPTT(), CheckpointedBPTT()):
            found = outcome(estimator, coupling, kind, num_steps)
            assert all(map(torch.equal, found[0], bptt[0])) and all(map(torch.equal, found[1], bptt[1]))


@every_coupling
@pytest.mark.parametrize("kind", ["tensor", "dict"])
@pytest.mark.parametrize("num_steps", [17, FULL])
def test_the_gradient_is_that_of_float64_up_to_rounding(coupling, kind, num_steps):
    with without_float64():
        found = outcome(ReversibleBPTT(), coupling, kind, num_steps)
    true = outcome(ReversibleBPTT(), coupling, kind, num_steps)
    assert all(map(torch.equal, found[0], true[0]))
    numbers = torch.finfo(torch.float32)
    lost = numbers.tiny / numbers.eps  # smaller ones, as after 256 updates damped by 1/2, have lost digits
    for mine, theirs in zip(found[1], true[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=max(1e-5 * float(theirs.abs().max()), lost))


def test_memory_is_that_of_float64():
    sizes = []
    for narrow in (True, False):
        cell, state, x = problem("damped 1/2", "tensor")
        if narrow:
            with without_float64():
                state = cell.couple(state)
        else:
            state = cell.couple(state)
        sizes.append(sum(leaf.nbytes for leaf in leaves_of(state)))
    assert sizes[0] == sizes[1]


def test_under_autocast_too():
    cell, state, x = problem("momentum 7/8", "tensor")
    with without_float64(), torch.autocast("cpu", LOW):
        found = [
            torch.autograd.grad(estimator(cell, state, x, 9).state.sum(), [state, x, *cell.parameters()])
            for estimator in (ReversibleBPTT(), BPTT())
        ]
    assert all(map(torch.equal, *found))


@every_coupling
def test_rows_of_their_own_length(coupling):
    lengths, found = torch.tensor([3, 9, 6]), []
    with without_float64():
        for estimator in (ReversibleBPTT(), BPTT()):
            cell, state, x = problem(coupling, "tensor")
            last = estimator(cell, state, x, 9, lengths=lengths).state
            found.append([last, *torch.autograd.grad(last.sin().sum(), [state, x, *cell.parameters()])])
    assert all(map(torch.equal, *found))


@every_coupling
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_read_as_in_float64_and_reaches_no_neighbour(coupling, bad):
    def states():
        cell = COUPLINGS[coupling](Stationary(lambda z, x: torch.tanh(z) + x))
        state, x = torch.full((3, 4), 0.3), torch.zeros(3, 4)
        with torch.no_grad():
            for step in range(12):
                x = x.clone()
                x[1, 2] = bad if step == 4 else 0.0
                state = cell(state, x, step)
                yield cell.read(state)

    with without_float64():
        mine = list(states())
    for one, true in zip(mine, states(), strict=True):
        assert torch.equal(one.nan_to_num(7, 8, 9), true.nan_to_num(7, 8, 9))
    assert min(int(state.isfinite().sum()) for state in mine[-2:]) == 11  # one copy of two, or both


@every_coupling
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_through_what_is_not_finite_is_that_of_bptt(coupling, bad):
    found = []
    with without_float64():
        for estimator in (ReversibleBPTT(), BPTT()):
            cell, state, x = problem(coupling, "tensor")
            with torch.no_grad():
                state[1, 2] = bad
            last = estimator(cell, state, x, 9).state
            found.append([last, *torch.autograd.grad(last.sum(), [state, x, *cell.parameters()])])
    assert not found[0][0][1].isfinite().all() and found[0][0][0].isfinite().all()
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine.nan_to_num(7, 8, 9), theirs.nan_to_num(7, 8, 9))


def test_a_state_that_leaves_the_grid_is_found_out():
    """Beyond 2^23 a float32 has no rest: what the sum rounds away is not met again."""
    cell = Leapfrog(Stationary(lambda z, x: torch.sin(z) + x))
    z, x = torch.full((1, 4), 0.3, requires_grad=True), torch.full((1, 4), 2.0**31)
    with without_float64():
        state = ReversibleBPTT()(cell, z, x, 4).state
        with pytest.raises(RuntimeError, match=r"first state again .* beyond 2\^20"):
            state.sum().backward()


def test_forbidding_tells():
    with pytest.raises(AssertionError, match="float64"), Forbidden():
        Damped(Stationary(torch.tanh)).couple(torch.ones(1, 2))
