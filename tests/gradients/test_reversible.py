"""What ReversibleBPTT alone promises: bit equality, memory, and a first state that is met again."""

import math

import pytest
import torch
from cells import CELLS, build
from problems import leaves_of, loss_of
from reversible_cases import COUPLINGS, REWRITING, Mixing, every_coupling, gradients, problem
from torch import nn

from loopgrad.analysis.counters import PeakBytes
from loopgrad.gradients import BPTT, ReversibleBPTT
from loopgrad.models import Leapfrog, Momentum


@every_coupling
@pytest.mark.parametrize("num_steps", [1, 2, 33, pytest.param(1024, marks=pytest.mark.slow)])
def test_gradient_equals_bptt_bit_for_bit(coupling, num_steps):
    cell, z, x = problem(coupling)
    ours, bptt = (gradients(estimator, cell, z, x, num_steps) for estimator in (ReversibleBPTT(), BPTT()))
    assert torch.equal(ours[0], bptt[0])
    assert all(map(torch.equal, ours[1], bptt[1]))


@pytest.mark.one_in(3)
@every_coupling
@pytest.mark.parametrize("cell", [name for name in CELLS if name not in (*REWRITING, "twice")])
def test_every_cell_of_the_suite_equals_bptt_bit_for_bit(coupling, cell):
    found = []
    for estimator in (ReversibleBPTT(), BPTT()):
        case = build(cell, torch.float32)
        torch.manual_seed(3)
        state = estimator(COUPLINGS[coupling](case.cell), case.state, case.inputs, 13).state
        sources = list(case.sources().values())
        found.append([*leaves_of(state), *torch.autograd.grad(loss_of(state), sources, allow_unused=True)])
    assert all(a is None if b is None else torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.slow
@every_coupling
def test_error_is_that_of_float32_itself(coupling):
    """Against the same recursion in float64 without a grid; the yardstick is that recursion in float32."""
    found = {}
    for name, dtype, arithmetic in (
        ("ours", torch.float32, "exact"),
        ("float32", torch.float32, "float32"),
        ("float64", torch.float64, "float64"),
    ):
        cell, z, x = problem(coupling, torch.float64)
        cell = cell.to(dtype)
        cell.arithmetic = arithmetic
        if arithmetic != "exact":
            cell.ratio = None
        estimator = ReversibleBPTT() if name == "ours" else BPTT()
        z, x = (t.detach().to(dtype).requires_grad_() for t in (z, x))
        grads = gradients(estimator, cell, z, x, 1024)[1]
        found[name] = torch.cat([g.flatten().double() for g in grads])
    errors = {name: float((found[name] - found["float64"]).norm() / found["float64"].norm()) for name in found}
    assert 0 < errors["ours"] <= 2 * errors["float32"]


class Mixed(nn.Module):
    """Under autocast: a weight that is cast twice per update, one that is cast and also read as it is, a cast input."""

    def __init__(self):
        super().__init__()
        self.twice, self.both = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, z, x, step):
        z = torch.tanh(self.twice(z) + self.both(x) + self.both.weight.mean())
        return torch.tanh(self.twice(z)) if step % 2 else self.both(z).sin()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("cache", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cell", ["plain", "mixed", "mixed, two updates a cycle"])
@every_coupling
def test_bf16_autocast_is_met_again(coupling, cell, cache, encoded):
    """With autocast's cache a weight is cast once, and its gradient is a sum in bf16; without, each use has a cast."""
    coupled, z, x = problem(coupling)
    if cell != "plain":
        coupled.cell = Mixed().requires_grad_()
        coupled.cell.period = 2 if "two" in cell else 1
    found = []
    for estimator in (ReversibleBPTT(), BPTT()):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            state = estimator(coupled, z, x.sin() if encoded else x, 65).state
        found.append([state, *torch.autograd.grad(loss_of(state), [z, x, *coupled.parameters()])])
    assert all(map(torch.equal, *found))


def test_a_cast_kept_for_a_whole_region_changes_the_sum():
    """Or the test above would not see whether the sums are taken in bf16."""
    cell, z, x = problem("leapfrog")
    found = []
    for cache in (True, False):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            state = ReversibleBPTT()(cell, z, x, 65).state
        found.append(torch.autograd.grad(loss_of(state), list(cell.parameters())))
    assert not all(map(torch.equal, *found))


def saved_bytes(estimator, cell, z, x, num_steps):
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        state = estimator(cell, z, x, num_steps).state
    owned = {t.untyped_storage().data_ptr() for t in (z, x, *cell.parameters())}
    kept = sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in owned)
    del state
    return kept


def peak_bytes(estimator, cell, z, x, num_steps):
    with PeakBytes() as peak:
        loss_of(estimator(cell, z, x, num_steps).state).backward()
    return peak.peak


@pytest.mark.one_in(3)
@pytest.mark.parametrize("measure", [saved_bytes, pytest.param(peak_bytes, marks=pytest.mark.slow)])
@every_coupling
def test_memory_does_not_grow_but_for_the_lost_digits(coupling, measure):
    cell, z, x = problem(coupling)
    short, long = (measure(ReversibleBPTT(), cell, z, x, num_steps) for num_steps in (16, 1024))
    kept = {"damped 1/2": 0.5, "damped 1/4": 0.75, "damped 1/8": 0.875, "damped 4/5": 0.2, "damped per update": 0.75}
    kept |= {"momentum 7/8": 0.875}
    bits = math.log2(1 / kept[coupling]) if coupling in kept else 0
    unpacked = 8 * z.numel() if measure is peak_bytes and bits else 0  # one word at a time, in backward
    assert long - short <= 1.25 * bits * 1008 * z.numel() / 8 + unpacked
    if not bits:
        assert long == short
    assert measure(BPTT(), cell, z, x, 1024) > 30 * long


@every_coupling
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_reaches_the_gradient_and_no_neighbour(coupling, bad):
    cell, z, x = problem(coupling)
    with torch.no_grad():
        z[1, 2] = bad
    ours, bptt = (gradients(estimator, cell, z, x, 9) for estimator in (ReversibleBPTT(), BPTT()))
    assert not ours[0][1].isfinite().all()
    for mine, theirs in zip(ours[1], bptt[1], strict=True):
        assert torch.equal(mine.isfinite(), theirs.isfinite())
        assert torch.equal(mine.nan_to_num(0, 0, 0), theirs.nan_to_num(0, 0, 0))
    assert ours[1][1][0].isfinite().all() and not ours[1][2].isfinite().all()


@pytest.mark.parametrize("make", [lambda c: Leapfrog(c, 1 / 32, "float64"), lambda c: Momentum(c, "7/8", "float64")])
def test_a_first_state_of_zeros_is_met_up_to_rounding(make):
    torch.manual_seed(0)
    cell, x = make(Mixing()), torch.randn(3, 8)
    ours, bptt = (
        torch.autograd.grad(loss_of(e(cell, torch.zeros(3, 8), x, 20).state), list(cell.parameters()))
        for e in (ReversibleBPTT(), BPTT())
    )
    for mine, theirs in zip(ours, bptt, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_plain_state_comes_back_plain_and_a_coupled_one_coupled():
    cell, z, x = problem("damped 1/2")
    plain, coupled = ReversibleBPTT()(cell, z, x, 6).state, ReversibleBPTT()(cell, cell.couple(z), x, 6).state
    assert plain.dtype == torch.float32 and torch.equal(cell.read(coupled), plain)
    again = ReversibleBPTT()(cell, coupled, x, 6).state  # going on from digits that are not zero
    again.current.sum().backward()
