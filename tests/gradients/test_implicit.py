"""Implicit gradients against dense solves in float64, long BPTT and, where there is no fixed point, their fallback."""

import copy

import pytest
import torch
from fixed_point_cases import PROBLEMS, SOLVERS, error, gradients, problem, weighted, witness
from problems import leaves_of

from loopgrad.gradients import BPTT, ImplicitGradient, Stationary, TruncatedBPTT
from loopgrad.gradients.solvers import Anderson, Broyden, Iteration, gcr

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.one_in(4)
@pytest.mark.parametrize("solver", [*SOLVERS, gcr])
@pytest.mark.parametrize("scope", ["sample", pytest.param("batch", marks=pytest.mark.slow)])
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
    own = gradients(weighted(TruncatedBPTT(num_steps=8)(cell, state, inputs, num_steps).state), inner, inputs)
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
    # three checks, and whether the states were met again
    assert rollout.stats.verdict.vjps == 16 and len(asked) <= 4


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
