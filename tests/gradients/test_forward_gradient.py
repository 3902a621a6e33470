"""Forward gradients: means against BPTT, variances against their laws, and what the estimator must leave alone."""

import copy
import math
import pickle

import pytest
import torch
from forward_cases import WAYS, every_way, flat, standard
from torch import nn

from loopgrad.gradients import BPTT, ForwardGradient


def moments(estimator, problem, draws, of_inputs=False):
    """Return the exact gradient, the mean of the draws, and K times the mean square of their relative error."""
    exact = flat(BPTT(), *problem, of_inputs=of_inputs)
    found = torch.stack([flat(estimator, *problem, of_inputs=of_inputs) for _ in range(draws)])
    constant = estimator.num_tangents * (found - exact).square().sum(1).mean() / exact.square().sum()
    return exact, found.mean(0), float(constant)


@pytest.mark.slow
@pytest.mark.parametrize("of_inputs", [False, True])
@every_way
def test_the_mean_is_the_gradient(way, of_inputs):
    """||mean - g|| < 3 sqrt(C / (N K)) ||g||, with C of these very draws."""
    problem, draws = standard(batch=4, size=5, hidden=3), 450
    estimator = ForwardGradient(num_tangents=4, seed=1, **WAYS[way])
    exact, mean, constant = moments(estimator, problem, draws, of_inputs)
    bound = 3 * math.sqrt(constant / (draws * estimator.num_tangents)) * exact.norm()
    assert (mean - exact).norm() < bound
    assert bound < 0.5 * exact.norm(), "too few draws to say anything"


@pytest.mark.slow
@pytest.mark.parametrize(("distribution", "shift"), [("rademacher", -1), ("gaussian", 1)])
@pytest.mark.parametrize("num_steps", [2, 12])
def test_weight_tangents_keep_the_law(distribution, shift, num_steps):
    """K relMSE = P - 1 (rademacher) or P + 1 (gaussian), at any depth."""
    cell, state, inputs, weight = standard(batch=4, size=10, hidden=5)
    count = sum(p.numel() for p in cell.parameters())
    assert count == 100
    estimator = ForwardGradient(64, "weights", 0, distribution, seed=0)
    exact = flat(BPTT(), cell, state, inputs, weight, num_steps)
    draws = torch.stack([flat(estimator, cell, state, inputs, weight, num_steps) for _ in range(120)])
    constant = 64 * (draws - exact).square().sum(1).mean() / exact.square().sum()
    assert abs(constant / (count + shift) - 1) < 0.1


@pytest.mark.slow
def test_state_noise_has_a_fifth_of_the_variance_of_weight_tangents():
    problem = standard()
    of_state = moments(ForwardGradient(8, window=0, seed=0), problem, 60)[2]
    of_weights = moments(ForwardGradient(8, "weights", 0, seed=0), problem, 60)[2]
    assert of_state < of_weights / 5


@every_way
def test_the_gradient_of_the_head_is_that_of_bptt(way):
    cell, state, inputs, _ = standard()
    head = nn.Linear(16, 3, dtype=torch.float64)
    found = [
        torch.autograd.grad(head(estimator(cell, state, inputs, 8).state).square().sum(), list(head.parameters()))
        for estimator in (ForwardGradient(seed=0, **WAYS[way]), BPTT())
    ]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("perturb", ["state", "weights"])
@pytest.mark.parametrize("length", [1, 3, 9, 100])
def test_the_window_is_exact(perturb, length):
    problem = standard()
    estimator = ForwardGradient(2, perturb, window=length, seed=0)
    if length >= 8:
        torch.testing.assert_close(flat(estimator, *problem), flat(BPTT(), *problem), rtol=1e-12, atol=1e-12)
    elif perturb == "state":  # all but the adjoints of the updates before is exact: one update before is known too
        short = flat(estimator, *problem, num_steps=length + 1)
        torch.testing.assert_close(short, flat(BPTT(), *problem, num_steps=length + 1), rtol=1e-12, atol=1e-12)


@every_way
def test_saved_bytes_do_not_grow_with_the_updates(way):
    problem = standard()

    def saved(num_steps):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
            ForwardGradient(4, seed=0, **WAYS[way])(*problem[:3], num_steps)
        return sum(kept)

    assert saved(5) == saved(64)


@pytest.mark.parametrize("perturb", ["state", "weights"])
def test_chunks_change_no_number(perturb):
    problem = standard()
    found = [flat(ForwardGradient(5, perturb, chunk_size=c, seed=3), *problem) for c in (None, 1, 2, 7)]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("perturb", ["state", "weights"])
def test_central_differences_are_near_the_jvp_in_float32(perturb):
    problem = standard(dtype=torch.float32)
    ways = [ForwardGradient(4, perturb, seed=5, mode=mode) for mode in ("jvp", "central")]
    exact, differenced = [flat(estimator, *problem) for estimator in ways]
    assert (exact - differenced).norm() < 5e-3 * exact.norm()


def test_16_bit_central_differences_are_refused():
    cell, state, inputs, _ = standard(dtype=torch.float32)
    estimator = ForwardGradient(mode="central", perturb="weights", seed=0)
    with pytest.raises(ValueError, match="bfloat16: central differences drown"):
        estimator(cell.bfloat16(), state.bfloat16(), inputs.bfloat16(), 4)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="under autocast"):
        estimator(cell.float(), state, inputs, 4)


@pytest.mark.parametrize("perturb", ["state", "weights"])
def test_tangents_stay_float32_under_autocast(perturb):
    cell, state, inputs, weight = standard(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.stack([flat(ForwardGradient(8, perturb, seed=s), cell, state, inputs, weight) for s in range(20)])
    exact = flat(ForwardGradient(8, perturb, seed=0), cell, state, inputs, weight)
    assert found.dtype == torch.float32
    assert (found[0] - exact).norm() < 0.1 * exact.norm(), "bfloat16 products, but the noise of the same seed"


@every_way
def test_only_the_own_generator_is_drawn_from(way):
    problem, before = standard(), None
    torch.manual_seed(4)
    before = torch.get_rng_state()
    estimator = ForwardGradient(2, seed=0, **WAYS[way])
    first, second = flat(estimator, *problem), flat(estimator, *problem)
    again = flat(ForwardGradient(2, seed=0, **WAYS[way]), *problem)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert not torch.equal(first, flat(ForwardGradient(2, **WAYS[way]), *problem))


def test_updates_of_many_passes_span_more_than_k_directions():
    """A constant seed would confine training to K directions."""
    problem = standard()
    estimator = ForwardGradient(1, "weights", 0, seed=0)
    found = torch.stack([flat(estimator, *problem) for _ in range(6)])
    assert torch.linalg.matrix_rank(found) == 6


def test_copies_go_on_from_the_same_generator():
    problem, estimator = standard(), ForwardGradient(2, seed=0)
    flat(estimator, *problem)
    copies = [copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))]
    expected = flat(estimator, *problem)
    assert all(torch.equal(flat(other, *problem), expected) for other in copies)
