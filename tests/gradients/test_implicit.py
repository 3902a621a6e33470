"""Implicit gradients against dense solves in float64, long BPTT and, where there is no fixed point, their fallback."""

import copy
import warnings
from functools import cache

import pytest
import torch
from cases import leaves_of
from torch import nn

from loopgrad.gradients import BPTT, ImplicitGradient, Stationary, TruncatedBPTT, tree
from loopgrad.gradients.solvers import LINEAR, Anderson, Broyden, Iteration, gcr
from loopgrad.models import TRM

SOLVERS = list(LINEAR)


class Mlp(nn.Module):
    def __init__(self, size=6, gain=0.7):
        super().__init__()
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)
        self.gain = gain

    def forward(self, state, inputs, step):
        return torch.tanh(self.gain * self.down(torch.nn.functional.silu(self.up(state + inputs))) + inputs)


class Gru(nn.Module):
    """Two streams in a dict, one update of each per cycle, so that no single update has the fixed point."""

    period = 2

    def __init__(self, size=5):
        super().__init__()
        self.fast, self.slow = nn.GRUCell(size, size), nn.GRUCell(size, size)

    def forward(self, state, inputs, step):
        if step % 2 == 0:
            return {"fast": self.fast(inputs["x"] + state["slow"], state["fast"]), "slow": state["slow"]}
        return {"fast": state["fast"], "slow": self.slow(state["fast"], state["slow"])}


def mlp():
    return Mlp(), torch.randn(4, 6), torch.randn(4, 6), 120


def gru():
    return Gru(), {"fast": torch.randn(4, 5), "slow": torch.zeros(4, 5)}, {"x": torch.randn(4, 5)}, 600


def trm():
    model = TRM(5, 4, hidden_size=8, num_heads=2, H_cycles=2, L_cycles=2, num_layers=1)
    with torch.no_grad():
        for parameter in model.cell.parameters():
            parameter *= 0.3
    state = {name: z.double() for name, z in model.initial_state(3).items()}
    return model.cell, state, torch.randn(3, *state["z_L"].shape[1:]), 900


PROBLEMS = {"mlp": mlp, "gru with a dict state": gru, "trm cycle": trm}


def problem(name, dtype=torch.float64):
    torch.manual_seed(0)
    cell, state, inputs, num_steps = PROBLEMS[name]()
    cell = cell.to(dtype)
    state = tree.map_tensors(lambda leaf: leaf.to(dtype), state)
    inputs = tree.map_tensors(lambda leaf: leaf.detach().to(dtype).requires_grad_(), inputs)
    return cell, state, inputs, num_steps


def weighted(state):
    """A loss with another cotangent for every entry."""
    return sum((leaf * torch.linspace(-1, 2, leaf.numel()).to(leaf).view_as(leaf)).sum() for leaf in leaves_of(state))


def gradients(loss, cell, inputs):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*cell.parameters(), *leaves_of(inputs)])])


def cycle(cell, state, inputs, num_steps):
    for step in range(num_steps - getattr(cell, "period", 1), num_steps):
        state = cell(state, inputs, step)
    return state


def dense(cell, state, inputs, num_steps):
    """(1 - J)^T w = g with the whole Jacobian of the cycle, and one product of it for parameters and inputs."""
    with torch.no_grad():
        for step in range(num_steps):
            state = cell(state, inputs, step)
    leaves, unflatten = tree.flatten(state)
    sizes = [leaf.numel() for leaf in leaves]

    def flat(vector):
        parts = [part.view_as(leaf) for part, leaf in zip(vector.split(sizes), leaves, strict=True)]
        return torch.cat([leaf.flatten() for leaf in leaves_of(cycle(cell, unflatten(parts), inputs, num_steps))])

    point = torch.cat([leaf.flatten() for leaf in leaves])
    jacobian = torch.autograd.functional.jacobian(flat, point)
    last = [leaf.clone().requires_grad_() for leaf in leaves]
    g = torch.cat([g.flatten() for g in torch.autograd.grad(weighted(unflatten(last)), last)])
    w = torch.linalg.solve((torch.eye(len(g)) - jacobian).T, g)
    return gradients(flat(point.clone()) @ w, cell, inputs), jacobian


@cache
def witness(name):
    """Two gradients (dense solve, long BPTT), the Jacobian of the cycle and the last state, once per problem."""
    by_solve, jacobian = dense(*problem(name))
    cell, state, inputs, num_steps = problem(name)
    last = BPTT()(cell, state, inputs, num_steps).state
    by_bptt = gradients(weighted(last), cell, inputs)
    return by_solve, by_bptt, jacobian, [leaf.detach() for leaf in leaves_of(last)]


def error(got, expected):
    return float((got - expected).norm() / expected.norm())


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("solver", [*SOLVERS, gcr])
@pytest.mark.parametrize("scope", ["sample", "batch"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_the_dense_solve_and_long_bptt(name, scope, solver):
    cell, state, inputs, num_steps = problem(name)
    estimator = ImplicitGradient(solver=solver, scope=scope, rtol=1e-9, max_vjps=400)
    rollout = estimator(cell, state, inputs, num_steps)
    got = gradients(weighted(rollout.state), cell, inputs)
    expected, bptt, jacobian, last = witness(name)
    assert 0.1 < torch.linalg.eigvals(jacobian).abs().max() < 0.99, "a problem that is too easy, or has no fixed point"
    assert rollout.stats.verdict.trusted.all()
    assert error(got, expected) < 1e-6
    assert error(got, bptt) < 1e-6
    assert all(map(torch.equal, leaves_of(rollout.state), last))


@pytest.mark.parametrize("forward", [Iteration(), Iteration(damping=0.7), Anderson(), Broyden()])
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_forward_solver_finds_the_same_fixed_point_and_gradient(name, forward):
    cell, state, inputs, num_steps = problem(name)
    estimator = ImplicitGradient(rtol=1e-9, max_vjps=400, forward=forward, forward_rtol=1e-9)
    rollout = estimator(cell, state, inputs, num_steps)
    got = gradients(weighted(rollout.state), cell, inputs)
    expected = witness(name)[0]
    assert rollout.stats.verdict.trusted.all() and rollout.stats.cell_evaluations <= num_steps + 2
    assert error(got, expected) < 1e-6


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scale_of_the_loss_changes_nothing_but_the_scale(solver, dtype):
    cell, state, inputs, num_steps = problem("mlp", dtype)
    estimator, found, products = ImplicitGradient(solver=solver, rtol=1e-3, max_vjps=100), [], set()
    for scale in (1.0, 1e-9, 1e-5, 1e3, 2.0**-40):
        rollout = estimator(cell, state, inputs, num_steps)
        found.append(gradients(scale * weighted(rollout.state), cell, inputs) / scale)
        products.add(rollout.stats.verdict.vjps)
    assert len(products) == 1 and min(products) > 2
    for other in found[1:]:
        assert error(other, found[0]) < (1e-5 if dtype == torch.float32 else 1e-12)
    assert torch.equal(found[-1], found[0])


def diverging():
    """A gated cell that wanders on: its Jacobian's spectral radius is above one."""
    torch.manual_seed(0)
    linear = nn.Linear(8, 8)
    with torch.no_grad():
        linear.weight.copy_(2.5 * torch.randn(8, 8) / 8**0.5)
    cell = Stationary(lambda z, x: torch.sin(linear(z) + 0.3 * x), parameters=linear)
    return cell, torch.randn(16, 8), torch.randn(16, 8, requires_grad=True), 16


@pytest.mark.parametrize("fallback", [TruncatedBPTT(num_steps=4), TruncatedBPTT(num_cycles=1), BPTT()])
def test_without_a_fixed_point_the_gradient_is_the_fallbacks(fallback):
    cell, state, inputs, num_steps = diverging()
    rollout = ImplicitGradient(fallback=fallback)(cell, state, inputs, num_steps)
    got = gradients(weighted(rollout.state), cell, inputs)
    own = gradients(weighted(fallback(cell, state, inputs, num_steps).state), cell, inputs)
    exact = gradients(weighted(BPTT()(cell, state, inputs, num_steps).state), cell, inputs)
    assert not rollout.stats.verdict.trusted.any() and rollout.stats.verdict.fallback
    assert error(got, own) < 1e-12
    cosine, floor = (torch.cosine_similarity(g, exact, dim=0) for g in (got, own))
    assert cosine >= floor - 1e-12
    assert rollout.stats.verdict.vjps == 0, "nothing was solved for samples whose forward residual says no"


def mixed():
    """Samples of the same cell with and without a fixed point: the input is the gain of each."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 6, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.linalg.qr(torch.randn(6, 6))[0])
    cell = Stationary(lambda z, x: torch.sin(x[:, :1] * linear(z) + x[:, 1:]), parameters=linear)
    gains = torch.tensor([0.3, 3.0, 0.5, 2.7, 0.6]).unsqueeze(1)
    return cell, torch.randn(5, 6), torch.cat([gains, torch.randn(5, 6)], dim=1).requires_grad_(), 60


def test_each_sample_is_judged_by_itself():
    cell, state, inputs, num_steps = mixed()
    rollout = ImplicitGradient(rtol=1e-8, max_vjps=60)(cell, state, inputs, num_steps)
    (got,) = torch.autograd.grad(weighted(rollout.state), inputs)
    (exact,) = torch.autograd.grad(weighted(BPTT()(cell, state, inputs, num_steps).state), inputs)
    (own,) = torch.autograd.grad(weighted(TruncatedBPTT(num_steps=1)(cell, state, inputs, num_steps).state), inputs)
    settled = torch.tensor([True, False, True, False, True])
    assert torch.equal(rollout.stats.verdict.trusted, settled)
    torch.testing.assert_close(got[settled], exact[settled], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(got[~settled], own[~settled], rtol=1e-12, atol=1e-12)
    numbers = rollout.stats.numbers()
    assert numbers["trusted"] == 0.6 and numbers["forward_residual_max"] > 0.1


def test_the_estimate_refuses_what_the_forward_residual_alone_would_trust():
    """Near a spectral radius of one a small residual is multiplied: the state is 1/(1 - rho) residuals away."""
    w = torch.tensor([0.999], requires_grad=True)
    cell = Stationary(lambda z, x: w * torch.sin(z) + x, parameters=[w])
    x = torch.full((1, 1), 1e-4)
    rollout = ImplicitGradient(forward_rtol=1e-2, max_gradient_error=0.3)(cell, torch.zeros(1, 1), x, 120)
    weighted(rollout.state).backward()
    verdict = rollout.stats.verdict
    assert verdict.forward_residual < 1e-2 and verdict.amplification > 30 and not verdict.trusted.any()


@pytest.mark.parametrize("num_steps", [8, 15, 30])
def test_the_estimate_is_of_the_size_of_the_error_of_each_sample(num_steps):
    cell, state, inputs, long = problem("mlp")
    (exact,) = torch.autograd.grad(weighted(BPTT()(cell, state, inputs, 4 * long).state), inputs)
    rollout = ImplicitGradient(rtol=1e-3, max_vjps=60, on_unconverged="ignore")(cell, state, inputs, num_steps)
    (got,) = torch.autograd.grad(weighted(rollout.state), inputs)
    errors = (got - exact).norm(dim=1) / exact.norm(dim=1)
    ratio = rollout.stats.verdict.estimate / errors
    assert (errors > 1e-9).all() and (ratio > 0.1).all() and (ratio < 15).all()


def test_raise_names_fraction_and_residuals_and_warn_warns():
    cell, state, inputs, num_steps = mixed()
    rollout = ImplicitGradient(on_unconverged="raise")(cell, state, inputs, num_steps)
    with pytest.raises(RuntimeError, match=r"40% of 5 samples .* forward residual .*largest.*max_gradient_error"):
        weighted(rollout.state).backward()
    rollout = ImplicitGradient(on_unconverged="warn")(cell, state, inputs, num_steps)
    with pytest.warns(UserWarning, match="40% of 5 samples"):
        warned = torch.autograd.grad(weighted(rollout.state), inputs)[0]
    rollout = ImplicitGradient(on_unconverged="ignore")(cell, state, inputs, num_steps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ignored = torch.autograd.grad(weighted(rollout.state), inputs)[0]
    assert torch.equal(warned, ignored) and rollout.stats.numbers()["trusted"] == 0.6  # ignored, yet on record


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("where", ["state", "inputs", "cotangent"])
def test_what_is_not_finite_in_one_sample_stays_there(solver, where):
    cell, state, inputs, num_steps = problem("mlp")
    clean = inputs.detach().clone()
    estimator = ImplicitGradient(solver=solver, rtol=1e-8, max_vjps=100)
    keep = torch.tensor([True, True, False, True])
    loss = (estimator(cell, state, clean.requires_grad_(), num_steps).state[keep] ** 2).sum()
    expected = torch.autograd.grad(loss, [clean, *cell.parameters()])
    dirty, start = inputs.detach().clone(), state.clone()
    if where == "state":
        start[2] = torch.inf
    if where == "inputs":
        dirty[2, 1] = torch.nan
    rollout = estimator(cell, start, dirty.requires_grad_(), num_steps)
    weight = torch.where(keep, 1.0, torch.nan if where == "cotangent" else 1.0)
    values = torch.where(
        keep.unsqueeze(1), rollout.state**2, rollout.state if where != "cotangent" else rollout.state**2
    )
    got = torch.autograd.grad((values.sum(1) * weight).sum(), [dirty, *cell.parameters()])
    assert rollout.stats.numbers()["finite"] == 0.75
    assert not got[0][2].any()
    torch.testing.assert_close(got[0][keep], expected[0][keep], rtol=1e-6, atol=1e-9)
    for mine, theirs in zip(got[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


def test_a_zero_cotangent_gives_zero_without_a_division():
    cell, state, inputs, num_steps = problem("mlp")
    for estimator in (ImplicitGradient(), ImplicitGradient(forward_rtol=0, max_gradient_error=0)):
        rollout = estimator(cell, state, inputs, num_steps)
        found = gradients(0 * weighted(rollout.state), cell, inputs)  # zeros and not None: others may wait for them
        assert not found.any() and found.isfinite().all()


def test_krylov_vectors_are_float32_under_a_bf16_cell_and_autocast_is_met_again():
    cell, state, inputs, num_steps = problem("mlp", torch.float32)
    seen = []

    def solver(pull, b, tolerance, max_vjps, check_every):
        seen.append(b.dtype)
        return gcr(pull, b, tolerance, max_vjps, check_every)

    estimator = ImplicitGradient(solver, forward_rtol=2e-2, max_vjps=40)
    exact = gradients(weighted(BPTT()(cell, state, inputs, num_steps).state), cell, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rollout = estimator(cell, state, inputs, num_steps)
    assert error(gradients(weighted(rollout.state.float()), cell, inputs), exact) < 0.1
    low = copy.deepcopy(cell).bfloat16()
    x = inputs.detach().bfloat16().requires_grad_()
    rollout = estimator(low, state.bfloat16(), x, num_steps)
    assert rollout.state.dtype == torch.bfloat16
    assert error(gradients(weighted(rollout.state.float()), low, x).float(), exact) < 0.1
    assert rollout.stats.verdict.trusted.all() and set(seen) == {torch.float32}


def test_dropout_masks_of_the_last_cycle_are_met_again():
    """With its masks fixed the last cycle is a map with a Jacobian; the vjp must be taken with those very masks."""
    cell, state, inputs, num_steps = problem("mlp")
    inner = cell
    cell = Stationary(lambda z, x: torch.dropout(inner(z, x, 0), 0.5, True), parameters=inner)
    torch.manual_seed(7)
    rollout = ImplicitGradient(forward_rtol=0, max_gradient_error=0)(cell, state, inputs, num_steps)
    got = gradients(weighted(rollout.state), inner, inputs)
    torch.manual_seed(7)
    own = gradients(weighted(TruncatedBPTT(num_steps=1)(cell, state, inputs, num_steps).state), inner, inputs)
    assert error(got, own) < 1e-12


def test_one_wait_for_the_device_per_check():
    cell, state, inputs, num_steps = problem("mlp")
    asked = []
    original = torch.Tensor.__bool__

    def counted(tensor):
        asked.append(1)
        return original(tensor)

    estimator = ImplicitGradient(rtol=0, max_vjps=16, check_every=4)
    rollout = estimator(cell, state, inputs, num_steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "__bool__", counted)
        weighted(rollout.state).backward()
    assert rollout.stats.verdict.vjps == 16 and len(asked) <= 3


def test_saved_bytes_do_not_grow_with_the_updates():
    cell, state, inputs, _ = problem("mlp")

    def saved(num_steps):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t.detach(), lambda t: t):
            state_ = ImplicitGradient()(cell, state, inputs, num_steps).state
        return sum(kept) + 0 * state_.numel()

    assert saved(4) == saved(64)


def test_a_warm_start_takes_fewer_products():
    cell, state, inputs, num_steps = problem("gru with a dict state")
    counts = {}
    for warm in (False, True):
        estimator = ImplicitGradient(rtol=1e-6, max_vjps=100, check_every=1, warm_start=warm)
        for _ in range(2):
            rollout = estimator(cell, state, inputs, num_steps)
            got = gradients(weighted(rollout.state), cell, inputs)
        counts[warm] = rollout.stats.verdict.vjps
        assert error(got, witness("gru with a dict state")[0]) < 1e-4
    assert counts[True] == 2 < counts[False]  # one to judge the start, one at least of the solver


def test_less_than_a_cycle_is_differentiated_exactly():
    cell, state, inputs, _ = problem("gru with a dict state")
    rollout = ImplicitGradient()(cell, state, inputs, 1)
    sources = [p for n, p in cell.named_parameters() if n.startswith("fast")]
    got = torch.autograd.grad(weighted(rollout.state), sources)
    exact = torch.autograd.grad(weighted(BPTT()(cell, state, inputs, 1).state), sources)
    assert all(map(torch.equal, got, exact)) and rollout.stats.vjps == 1


def test_second_derivatives_are_refused():
    cell, state, inputs, num_steps = problem("mlp")
    loss = weighted(ImplicitGradient()(cell, state, inputs, num_steps).state)
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(loss, inputs, create_graph=True)


def test_a_state_without_a_common_first_dimension_is_refused_with_the_remedy():
    cell = Stationary(lambda z, x: (0.5 * z[0] + x, 0.5 * z[1]), parameters=[torch.ones(1, requires_grad=True)])
    state = (torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match="scope='batch'"):
        ImplicitGradient()(cell, state, torch.ones(3, 2), 8)
    ImplicitGradient(scope="batch")(cell, state, torch.ones(3, 2), 8)
