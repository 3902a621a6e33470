"""Compressed activations: backward by hand over rounded states, the best matrix of a rank, bytes by their law."""

import math

import pytest
import torch
from foreign_cells import FOREIGN, build
from foreign_estimators import Case, rollout
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from loopgrad.analysis.counters import SavedBytes
from loopgrad.gradients import BPTT, CompressedBPTT, Stationary
from loopgrad.gradients.compression import Levels, Near, Rounded, Thin
from loopgrad.models import TRM

FORMS = {"bfloat16": Rounded(torch.bfloat16), "int8": Levels()}


def tanh_cell(width: int, dtype=torch.float64):
    linear = nn.Linear(width, width, bias=False, dtype=dtype)
    return linear, Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear)


def gradient(estimator, cell, z, x, num_steps, *sources):
    state = estimator(cell, z, x, num_steps).state
    return state, torch.autograd.grad((state * torch.linspace(-1, 1, state.shape[-1])).sum(), sources)


@pytest.mark.parametrize("kept", FORMS)
def test_backward_is_that_by_hand_over_short_states(kept):
    torch.manual_seed(0)
    linear, cell = tanh_cell(12)
    z, x = torch.randn(5, 12).double().requires_grad_(), torch.randn(5, 12).double().requires_grad_()
    state, (dW, dx, dz) = gradient(CompressedBPTT(kept), cell, z, x, 7, linear.weight, x, z)
    with torch.no_grad():
        states = [z]
        for _ in range(7):
            states.append(torch.tanh(linear(states[-1]) + x))
        assert torch.equal(state, states[-1])
        form = FORMS[kept]
        short = [z, *(form.restored(form.packed(h), h.shape, h.dtype) for h in states[1:])]  # z_0 is there anyway
        assert all(0 < torch.dist(a, b) < 0.02 * b.norm() for a, b in zip(short[1:], states[1:], strict=True))
        g, by_hand, in_x = torch.linspace(-1, 1, 12).double().expand(5, 12), torch.zeros(12, 12).double(), 0
        for before, after in zip(short[-2::-1], short[:0:-1], strict=True):
            g = g * (1 - after**2)
            by_hand, in_x, g = by_hand + g.T @ before, in_x + g, g @ linear.weight
    torch.testing.assert_close(dW, by_hand, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dx, in_x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dz, g, rtol=1e-12, atol=1e-12)


def test_a_number_is_within_its_bound():
    x = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 300).unsqueeze(1)
    rounded = FORMS["bfloat16"].restored(FORMS["bfloat16"].packed(x), x.shape, x.dtype)
    assert ((rounded - x).abs() <= x.abs() * 2**-8).all()
    levels = FORMS["int8"].restored(FORMS["int8"].packed(x), x.shape, x.dtype)
    assert ((levels - x).abs() <= x.abs().amax(dim=1, keepdim=True) / 127 * (0.5 + 1e-5)).all()
    for scale in (1e-300, 1e-60, 1e60, 1e300):  # beyond float32's range
        wide = torch.linspace(-1, 1, 80).double().view(2, 40) * scale
        levels = FORMS["int8"].restored(FORMS["int8"].packed(wide), wide.shape, wide.dtype)
        assert ((levels - wide).abs() <= wide.abs().amax(dim=1, keepdim=True) / 127 * (0.5 + 1e-5)).all()
    small = torch.linspace(-1, 1, 80).view(2, 40) * 1e-38  # in units that float32 has few digits of
    levels = FORMS["int8"].restored(FORMS["int8"].packed(small), small.shape, small.dtype)
    assert ((levels - small).abs() <= small.abs().amax(dim=1, keepdim=True) / 127 * 0.6).all()
    zeros = torch.zeros(3, 40)
    assert torch.equal(FORMS["int8"].restored(FORMS["int8"].packed(zeros), zeros.shape, zeros.dtype), zeros)


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_a_thin_product_is_nearly_the_best_of_its_rank(rank):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 50, generator=generator)).Q for n in (90, 60))
    singular = 0.8 ** torch.arange(50.0)
    x = ((left * singular) @ right.T).view(9, 10, 60)
    form = Thin(rank)
    found = torch.dist(form.restored(form.packed(x), x.shape, x.dtype), x)
    assert found <= 1.2 * singular[rank:].norm() and form.fits(x)
    assert sum(part.numel() for part in form.packed(x)) == rank * (90 + 60)


@pytest.mark.parametrize("dtype, rounding", [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_a_tolerance_takes_the_least_rank_that_is_within_it(dtype, rounding):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 50, generator=generator).double()).Q for n in (90, 60))
    singular = 0.8 ** torch.arange(50.0).double()
    x = ((left * singular) @ right.T).view(9, 10, 60).to(dtype)
    for tolerance in (0.3, 0.1, 0.05):
        parts = Near(tolerance).packed(x)
        rank = next(r for r in range(50) if singular[r:].norm() <= tolerance * singular.norm())
        assert [tuple(part.shape) for part in parts] == [(90, rank), (rank, 60)], "the rank, by hand"
        assert all(part.dtype == dtype for part in parts)
        found = Near(tolerance).restored(parts, x.shape, x.dtype)
        assert torch.dist(found.double(), x.double()) <= (tolerance + rounding) * x.double().norm()


def test_a_tolerance_keeps_whole_what_it_cannot_shorten_and_keeps_nothing_of_zeros():
    generator = torch.Generator().manual_seed(0)
    form, flat = Near(0.01), torch.linalg.qr(torch.randn(20, 20, generator=generator)).Q
    wrong = torch.ones(20, 20)
    wrong[3, 4] = math.nan
    for whole in (flat, wrong, torch.ones(20, 20, device="meta")):
        assert form.fits(whole) and form.packed(whole)[0] is whole
        assert form.restored([whole], whole.shape, whole.dtype) is whole
    zeros = torch.zeros(2, 10, 20)
    parts = form.packed(zeros)
    assert sum(part.numel() for part in parts) == 0
    assert torch.equal(form.restored(parts, zeros.shape, zeros.dtype), zeros)


@pytest.mark.parametrize("estimator", [CompressedBPTT(rank=2), CompressedBPTT(tolerance=1e-10)])
def test_a_rank_that_activations_have_is_exact(estimator):
    torch.manual_seed(0)
    linear, cell = tanh_cell(32)
    z, x = (torch.randn(2, 32).double().repeat(16, 1) for _ in range(2))  # two different rows, and so rank two
    ours, theirs = (gradient(it, cell, z, x, 9, linear.weight)[1][0] for it in (estimator, BPTT()))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    saved = SavedBytes(exclude=[linear.weight, z, x])
    with saved:
        rollout = estimator(cell, z, x, 9)
    assert saved.held() == 9 * 2 * 8 * (32 + 32) and rollout.stats.vjps == 9


@pytest.mark.parametrize("num_steps", [16, 64, 256])
def test_bytes_follow_their_law(num_steps):
    """A tanh keeps its result, which is what the next product keeps: one matrix per update, and z_0."""
    linear, cell = tanh_cell(32, torch.float32)
    z, x = torch.randn(64, 32), torch.randn(64, 32)
    expected = {
        BPTT(): 64 * 32 * 4,
        CompressedBPTT("bfloat16"): 64 * 32 * 2,
        CompressedBPTT("int8"): 64 * 32 + 64 * 4,
        CompressedBPTT(rank=4): 4 * 4 * (64 + 32),
    }
    for estimator, each in expected.items():
        saved = SavedBytes(exclude=[linear.weight, z, x])
        with saved:
            rollout = estimator(cell, z, x, num_steps)
        assert saved.held() == num_steps * each, estimator
        assert (rollout.stats.cell_evaluations, rollout.stats.vjps) == (num_steps, num_steps)


@pytest.mark.parametrize("autocast", [False, True])
def test_weights_are_kept_once_and_exactly(autocast):
    """With weights that are not rounded a linear recursion has the exact gradient in its state and inputs."""
    linear = nn.Linear(16, 16)
    cell = Stationary(lambda z, x: 0.5 * linear(z).float() + x, parameters=linear)
    z, x = torch.randn(4, 16, requires_grad=True), torch.randn(4, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, theirs = (gradient(it, cell, z, x, 6, x, z)[1] for it in (CompressedBPTT(rank=1), BPTT()))
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_hooks_around_are_given_the_short_forms():
    linear, cell = tanh_cell(32, torch.float32)
    z, x, kept = torch.randn(64, 32), torch.randn(64, 32), []
    with saved_tensors_hooks(lambda it: kept.append(it) or it, lambda it: it):
        gradient(CompressedBPTT("int8"), cell, z, x, 3, linear.weight)
    # the first update keeps z_0 too, the loss its own factor
    assert sorted(str(it.dtype) for it in kept if it.shape == (64, 32)) == ["torch.float32", *["torch.int8"] * 3]
    with save_on_cpu():
        found = gradient(CompressedBPTT("int8"), cell, z, x, 3, linear.weight)[1]
    assert torch.equal(found[0], gradient(CompressedBPTT("int8"), cell, z, x, 3, linear.weight)[1][0])


@pytest.mark.parametrize(
    "estimator", [*map(CompressedBPTT, FORMS), CompressedBPTT(rank=3), CompressedBPTT(tolerance=0.1)]
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_never_made_finite(estimator, bad):
    linear = nn.Linear(16, 16)
    cell = Stationary(lambda z, x: linear(z).relu() * x, parameters=linear)
    x = torch.ones(32, 16)
    x[3, 5] = bad
    try:
        found = gradient(estimator, cell, torch.ones(32, 16), x, 3, linear.weight)[1][0]
    except RuntimeError as error:  # a decomposition refuses such numbers, on some devices
        assert "linalg" in str(error)
        return
    assert not found.isfinite().all()


def test_the_form_nears_the_exact_gradient_as_it_has_more():
    torch.manual_seed(0)
    model = TRM(vocab_size=6, seq_len=16, hidden_size=32, num_heads=2, seed=0)
    tokens = torch.randint(0, 6, (8, 16), generator=torch.Generator().manual_seed(0))

    def of(estimator):
        state = estimator(model.cell, model.initial_state(8, 16), model.encode(tokens), 12).state
        loss = (state["z_H"] * torch.linspace(-1, 1, 32)).mean()
        return torch.cat([it.flatten() for it in torch.autograd.grad(loss, list(model.cell.parameters()))])

    exact = of(BPTT())
    wrong = [torch.dist(of(CompressedBPTT(rank=r)), exact) / exact.norm() for r in (1, 4, 16)]
    assert wrong[0] > wrong[1] > wrong[2]
    wrong = [torch.dist(of(CompressedBPTT(tolerance=e)), exact) / exact.norm() for e in (0.3, 0.003, 1e-6)]
    assert wrong[0] > wrong[1] > wrong[2] and wrong[1] < 0.03 and wrong[2] < 1e-4
    rounded, levels = (torch.dist(of(CompressedBPTT(kept)), exact) / exact.norm() for kept in FORMS)
    assert 0 < rounded < 0.02 and 0 < levels < 0.1


def test_second_derivatives_over_what_is_kept_whole_are_bptts():
    linear, cell = tanh_cell(4)  # rows of four numbers have no short form
    z, x = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    found = []
    for estimator in (CompressedBPTT("int8"), BPTT()):
        first = torch.autograd.grad(estimator(cell, z, x, 5).state.sum(), linear.weight, create_graph=True)[0]
        found.append(torch.autograd.grad(first.square().sum(), linear.weight)[0])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "takes one of kept, rank and tolerance, got none"),
        ({"kept": "int8", "rank": 3}, "takes one of kept, rank and tolerance"),
        ({"tolerance": 0}, "tolerance=0. must be a number above 0 and below 1"),
        ({"tolerance": 1.0}, "tolerance=1.0"),
        ({"tolerance": math.nan}, "tolerance=nan"),
        ({"tolerance": "0.1"}, "tolerance='0.1'"),
        ({"kept": "int4"}, "int4"),
        ({"rank": 0}, "rank=0"),
        ({"rank": 1.5}, "rank=1.5"),
    ],
)
def test_wrong_choices_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CompressedBPTT(**arguments)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("short", [*map(CompressedBPTT, FORMS), CompressedBPTT(tolerance=0.003)], ids=str)
@pytest.mark.parametrize("model", FOREIGN)
def test_models_that_others_wrote_have_nearly_their_gradient(model, short):
    found = []
    for estimator in (BPTT(), short):
        torch.manual_seed(0)
        foreign, case = build(model), Case(estimator)
        problem = case.begin(foreign)
        torch.manual_seed(1)
        loss = rollout(case, foreign, problem)
        parameters = [it for it in problem.cell.parameters() if it.requires_grad]
        parts = torch.autograd.grad(loss, parameters, materialize_grads=True)
        found.append((loss.detach(), torch.cat([part.flatten() for part in parts])))
    (loss, exact), (same, ours) = found
    assert torch.equal(loss, same)
    assert torch.cosine_similarity(exact, ours, dim=0) > 0.999
