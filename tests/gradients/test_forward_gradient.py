"""Forward gradients: means against BPTT, variances against their laws, and what the estimator must leave alone."""

import copy
import math
import pickle

import pytest
import torch
from cases import build, leaves_of, loop, loss_of
from torch import nn
from torch.nn import functional as F

from loopgrad.gradients import BPTT, ForwardGradient, Stationary

WAYS = {
    "state": {},
    "state_window_3": {"window": 3},
    "state_central": {"mode": "central"},
    "weights": {"perturb": "weights", "window": 0},
    "weights_gaussian": {"perturb": "weights", "window": 0, "distribution": "gaussian"},
    "zeroth_order": {"perturb": "weights", "window": 0, "mode": "central"},
}
every_way = pytest.mark.parametrize("way", WAYS)


class MLP(nn.Module):
    """The standard cell: z <- rms_norm(z + W2 silu(W1 (z + x))), 16 features and about 200 parameters at hidden=6."""

    def __init__(self, size=16, hidden=6):
        super().__init__()
        self.up, self.down = nn.Linear(size, hidden, bias=False), nn.Linear(hidden, size, bias=False)

    def forward(self, state, inputs, step):
        return F.rms_norm(state + self.down(F.silu(self.up(state + inputs))), state.shape[-1:])


def standard(batch=32, size=16, hidden=6, dtype=torch.float64):
    torch.manual_seed(0)
    cell = MLP(size, hidden).to(dtype)
    state = torch.randn(batch, size, dtype=dtype)
    inputs = torch.randn(batch, size, dtype=dtype)
    return cell, state, inputs, torch.randn(batch, size, dtype=dtype)


def flat(estimator, cell, state, inputs, weight, num_steps=8, of_inputs=False):
    inputs = inputs.clone().requires_grad_(of_inputs)
    z = estimator(cell, state, inputs, num_steps).state
    sources = [*cell.parameters(), *([inputs] if of_inputs else [])]
    return torch.cat([g.flatten() for g in torch.autograd.grad((z * weight).sum(), sources)])


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


@every_way
@pytest.mark.parametrize("num_tangents", [1, 3])
def test_dropout_masks_are_those_of_the_forward_pass(way, num_tangents):
    """The state under active dropout equals the plain loop's, and the estimate is of that very masked map."""
    cell, state, inputs, _ = standard()
    masked = Stationary(lambda z, x: torch.dropout(cell(z, x, 0), 0.5, True), parameters=cell)
    torch.manual_seed(7)
    z = ForwardGradient(num_tangents, seed=0, **WAYS[way])(masked, state, inputs, 6).state
    torch.manual_seed(7)
    expected = BPTT()(masked, state, inputs, 6).state
    assert torch.equal(z, expected)
    exact = torch.autograd.grad(expected.sum(), cell.up.weight)[0]
    torch.manual_seed(7)
    many = ForwardGradient(400, seed=0, **{"chunk_size": 400, **WAYS[way]})(masked, state, inputs, 6).state
    found = torch.autograd.grad(many.sum(), cell.up.weight)[0]
    assert F.cosine_similarity(found.flatten(), exact.flatten(), dim=0) > 0.75


@every_way
def test_attention_takes_a_kernel_with_forward_ad(way):
    problem, witness = build("attention"), build("attention")
    state = ForwardGradient(256, seed=0, **WAYS[way])(problem.cell, problem.state, problem.inputs, 5).state
    last = loop(witness, 5)
    torch.testing.assert_close(leaves_of(state), leaves_of(last), rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(loss_of(state), list(problem.cell.parameters()))
    exact = torch.autograd.grad(loss_of(last), list(witness.cell.parameters()))
    vectors = [torch.cat([g.flatten() for g in grads]) for grads in (found, exact)]
    assert F.cosine_similarity(*vectors, dim=0) > 0.7


def test_an_operator_without_a_rule_is_named_and_central_mode_takes_it():
    table = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))
    index, offsets = torch.tensor([0, 2, 4]), torch.tensor([0, 1, 2])
    cell = Stationary(lambda z, x: torch.tanh(z + F.embedding_bag(index, table, offsets)), parameters=[table])
    z = torch.zeros(3, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="cannot carry tangents.*mode='central'"):
        ForwardGradient(perturb="weights", window=0, seed=0)(cell, z, None, 3)
    ForwardGradient(perturb="weights", window=0, mode="central", seed=0)(cell, z, None, 3).state.sum().backward()
    assert table.grad is not None


def test_buffers_that_updates_write_are_refused_by_name_of_the_way_out():
    problem = build("buffers")
    with pytest.raises(RuntimeError, match="mode='central'"):
        ForwardGradient(seed=0)(problem.cell, problem.state, problem.inputs, 3)


@every_way
def test_a_tensor_that_is_not_passed_is_not_lost_in_silence(way):
    hidden = torch.randn(4, dtype=torch.float64, requires_grad=True)
    linear = nn.Linear(4, 4, dtype=torch.float64)
    cell = Stationary(lambda z, x: torch.tanh(linear(z) * hidden), parameters=linear)
    with pytest.raises(RuntimeError, match=r"uses a tensor of shape \(4,\)"):
        ForwardGradient(seed=0, **WAYS[way])(cell, torch.ones(2, 4, dtype=torch.float64), None, 5)


def test_weights_changed_before_backward_are_noticed():
    cell, state, inputs, weight = standard()
    z = ForwardGradient(seed=0)(cell, state, inputs, 6).state
    with torch.no_grad():
        cell.up.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (z * weight).sum().backward()


def test_no_second_derivative():
    cell, state, inputs, weight = standard()
    z = ForwardGradient(seed=0)(cell, state, inputs, 6).state
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad((z * weight).sum(), cell.up.weight, create_graph=True)


@pytest.mark.slow
def test_samples_that_see_each_other_take_scope_batch():
    cell, state, inputs, weight = standard(batch=6, size=5, hidden=3)
    mixed = Stationary(lambda z, x: cell(z - 0.5 * z.mean(0), x, 0), parameters=cell)
    exact = flat(BPTT(), mixed, state, inputs, weight)
    errors = []
    for scope in ("sample", "batch"):
        estimator = ForwardGradient(64, scope=scope, seed=0)
        draws = torch.stack([flat(estimator, mixed, state, inputs, weight) for _ in range(60)])
        noise = (draws.var(0).sum() / 60).sqrt()
        errors.append(float((draws.mean(0) - exact).norm() / noise))
    assert errors[1] < 2 < 4 < errors[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tangents": 0}, "num_tangents=0"),
        ({"perturb": "weight"}, "perturb='weight'"),
        ({"window": -1}, "window=-1"),
        ({"distribution": "normal"}, "distribution='normal'"),
        ({"mode": "forward"}, "mode='forward'"),
        ({"epsilon": 0.0}, "epsilon=0"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"scope": "row"}, "scope='row'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ForwardGradient(**arguments)


@every_way
def test_nothing_is_carried_where_nothing_wants_a_gradient(way):
    cell, state, inputs, _ = standard()
    estimator = ForwardGradient(seed=0, **WAYS[way])
    with torch.no_grad():
        rollout = estimator(cell, state, inputs, 6)
    assert rollout.stats.cell_evaluations == 6 and rollout.stats.tangents == 0
    assert torch.equal(rollout.state, BPTT()(cell, state, inputs, 6).state)
    assert torch.equal(estimator.generator.get_state(), ForwardGradient(seed=0).generator.get_state())
