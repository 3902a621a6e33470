"""One suite for every estimator on every cell; the witnesses are closed forms, a hand-written loop and differences."""

from functools import cache

import pytest
import torch
from cases import ESTIMATORS, EstimatorCase
from cells import CELLS
from problems import detached, leaves_of, loop, loss_of

from loopgrad.gradients import BPTT
from loopgrad.gradients.contract import period_of

LENGTHS = [1, 2, 5, 9, 16]
every_estimator = pytest.mark.parametrize("case", ESTIMATORS, ids=lambda case: case.name)
every_cell = pytest.mark.parametrize("cell", CELLS)


def built(case: EstimatorCase, cell: str):
    if cell in case.refused:
        pytest.skip(f"{case.name} refuses cells such as {cell}: tested in its own file")
    return case.build(cell)


def gradients(loss, problem):
    sources = problem.sources()
    found = torch.autograd.grad(loss, list(sources.values()), allow_unused=True)
    return dict(zip(sources, found, strict=True))


def check_state(case, leaves, expected):
    for a, b in zip(leaves, expected, strict=True):
        if case.side_by_side:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
        else:
            assert torch.equal(a, b)


def z_L(state):
    return state["z_L"] if isinstance(state, dict) else state.current["z_L"]


def differentiated(case: EstimatorCase, problem, num_steps):
    last = case.differentiated(problem.cell) if case.differentiated else num_steps
    return last if last < num_steps else None


@cache
def by_hand(couple, cell, num_steps, last):
    """The last state, gradients and buffers of the loop, once for all estimators that differentiate as many updates."""
    witness = EstimatorCase("loop", BPTT(), couple=couple).build(cell)
    torch.manual_seed(1)
    state = loop(witness, num_steps, last)
    return leaves_of(detached(state)), gradients(loss_of(state), witness), list(witness.cell.buffers())


@pytest.mark.one_in(4)
@every_estimator
@every_cell
@pytest.mark.parametrize("num_steps", LENGTHS)
def test_state_and_gradients_equal_the_hand_written_loop(case, cell, num_steps):
    problem = built(case, cell)
    torch.manual_seed(1)
    state = case.estimator(problem.cell, problem.state, problem.inputs, num_steps).state
    after = torch.get_rng_state()
    got = gradients(loss_of(state), problem)
    assert torch.equal(torch.get_rng_state(), after), "backward moved the global generator"

    last, expected, buffers = by_hand(case.couple, cell, num_steps, differentiated(case, problem, num_steps))
    check_state(case, leaves_of(state), last)
    for name, gradient in expected.items():
        if gradient is None:
            assert got[name] is None, name
        else:
            torch.testing.assert_close(got[name], gradient, rtol=1e-12, atol=1e-13, msg=name)
    for (name, mine), theirs in zip(problem.cell.named_buffers(), buffers, strict=True):
        assert torch.equal(mine, theirs), f"buffer {name} was updated twice"


@every_estimator
def test_affine_gradient_equals_the_closed_form(case):
    """With adjoints l_t = (A^T)^(T-t) g: d/dA = sum_t l_{t+1} z_t^T, d/dB = sum_t l_{t+1} x^T, d/dx = B^T sum_t l_t."""
    if case.couple is not None:
        pytest.skip("the closed form of the coupled recursion is in test_coupling.py")
    num_steps = 12
    problem = built(case, "affine")
    state = case.estimator(problem.cell, problem.state, problem.inputs, num_steps).state
    got = gradients((state * torch.arange(4.0)).sum(), problem)

    A, B = (p.detach() for p in problem.cell.parameters())
    x, z0 = problem.inputs.detach(), problem.state.detach()
    power = [torch.linalg.matrix_power(A, n) for n in range(num_steps + 1)]
    geometric = [sum(power[:n], torch.zeros(4, 4, dtype=A.dtype)) for n in range(num_steps + 1)]
    states = [z0 @ power[n].T + x @ (geometric[n] @ B).T for n in range(num_steps)]
    g = torch.arange(4.0, dtype=A.dtype).expand(3, 4)
    first = num_steps - (differentiated(case, problem, num_steps) or num_steps)
    adjoints = {t: g @ power[num_steps - t] for t in range(num_steps + 1)}
    dA = sum(adjoints[t + 1].T @ states[t] for t in range(first, num_steps))
    dB = sum(adjoints[t + 1].T @ x for t in range(first, num_steps))
    dx = sum(adjoints[t + 1] for t in range(first, num_steps)) @ B
    torch.testing.assert_close(got["parameter A"], dA, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got["parameter B"], dB, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got["inputs 0"], dx, rtol=1e-12, atol=1e-12)
    if first == 0:
        torch.testing.assert_close(got["state 0"], adjoints[0], rtol=1e-12, atol=1e-12)
    else:
        assert got["state 0"] is None


@pytest.mark.one_in(2)
@every_estimator
@pytest.mark.parametrize("cell", ["affine", "two_streams", "recurrent", "dataclass_state", "attention", "closure"])
def test_directional_derivative_equals_finite_differences(case, cell):
    """Central differences of the loss in a random direction; what the estimator holds constant is held constant."""
    num_steps, epsilon = 9, 1e-5
    problem = built(case, cell)
    sources = {name: t for name, t in problem.sources().items() if t.is_leaf}
    state = case.estimator(problem.cell, problem.state, problem.inputs, num_steps).state
    found = torch.autograd.grad(loss_of(state), list(sources.values()), allow_unused=True)
    torch.manual_seed(2)
    direction = [torch.randn_like(t) for t in sources.values()]
    slope = sum((g * d).sum() for g, d in zip(found, direction, strict=True) if g is not None)

    last = differentiated(case, problem, num_steps)
    start = num_steps - (last or num_steps)
    constant = loop(problem, start)

    def loss_at(shift):
        with torch.no_grad():
            for t, d in zip(sources.values(), direction, strict=True):
                t += shift * d
            state = constant if last else problem.state
            for step in range(start, num_steps):
                state = problem.cell(state, problem.inputs, step)
            for t, d in zip(sources.values(), direction, strict=True):
                t -= shift * d
            return loss_of(state)

    expected = (loss_at(epsilon) - loss_at(-epsilon)) / (2 * epsilon)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-7)


@every_estimator
def test_what_is_not_differentiated_is_declared(case):
    problem = built(case, "two_streams")
    state = case.estimator(problem.cell, problem.state, problem.inputs, 12).state
    missing = {name.split()[0] for name, gradient in gradients(loss_of(state), problem).items() if gradient is None}
    declared = set(case.estimator.not_differentiated) if differentiated(case, problem, 12) else set()
    assert missing == declared


@every_estimator
def test_kind_says_whether_the_gradient_is_that_of_bptt(case):
    problem = built(case, "two_streams")
    got = gradients(loss_of(case.estimator(problem.cell, problem.state, problem.inputs, 12).state), problem)
    exact = gradients(loss_of(loop(problem, 12)), problem)
    name = "parameter low.weight"
    error = (got[name] - exact[name]).norm() / exact[name].norm()
    if case.estimator.kind == "exact" or not differentiated(case, problem, 12):
        assert error < (1e-12 if case.side_by_side else 1e-14)
    else:
        assert error > 1e-3


@every_estimator
def test_an_encoder_in_front_trains(case):
    problem = built(case, "affine")
    encoder = torch.nn.Linear(4, 4, dtype=torch.float64)
    raw = torch.randn(3, 4, dtype=torch.float64)
    loss_of(case.estimator(problem.cell, problem.state, encoder(raw), 8).state).backward()

    witness = built(case, "affine")
    object.__setattr__(witness, "inputs", encoder(raw))
    last = differentiated(case, witness, 8)
    expected = torch.autograd.grad(loss_of(loop(witness, 8, last)), [encoder.weight, encoder.bias])
    torch.testing.assert_close(encoder.weight.grad, expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(encoder.bias.grad, expected[1], rtol=1e-12, atol=1e-12)


@every_estimator
def test_two_rollouts_before_one_backward_and_accumulation(case):
    problem = built(case, "two_streams")

    def run(num_steps):
        return loss_of(case.estimator(problem.cell, problem.state, problem.inputs, num_steps).state)

    separate = [gradients(run(n), problem) for n in (6, 9)]
    together = run(6) + run(9)
    together.backward()
    run(6).backward()
    for name, tensor in problem.sources().items():
        parts = [separate[i][name] for i in (0, 1, 0) if separate[i][name] is not None]
        if parts:
            torch.testing.assert_close(tensor.grad, sum(parts), rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.one_in(3)
@every_estimator
@every_cell
def test_hooks_of_each_tensor_fire_once(case, cell):
    problem, fired = built(case, cell), {}
    for name, tensor in problem.sources().items():
        tensor.register_hook(lambda gradient, name=name: fired.__setitem__(name, fired.get(name, 0) + 1))
    loss_of(case.estimator(problem.cell, problem.state, problem.inputs, 7).state).backward()
    assert fired
    assert set(fired.values()) == {1}, fired


@every_estimator
def test_backward_can_be_repeated_with_retain_graph(case):
    problem = built(case, "two_streams")
    loss = loss_of(case.estimator(problem.cell, problem.state, problem.inputs, 7).state)
    weight = problem.sources()["parameter low.weight"]
    (first,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (second,) = torch.autograd.grad(loss, weight)
    assert torch.equal(first, second)


@every_estimator
def test_second_derivative_is_right_or_raises(case):
    problem = built(case, "two_streams")
    weight = problem.sources()["parameter high.weight"]
    last = differentiated(case, problem, 6)
    try:
        loss = loss_of(case.estimator(problem.cell, problem.state, problem.inputs, 6).state)
        (first,) = torch.autograd.grad(loss, weight, create_graph=True)
        (got,) = torch.autograd.grad(first.square().sum(), weight)
    except RuntimeError as error:
        assert "create_graph" in str(error) and "BPTT()" in str(error)
        return
    (first,) = torch.autograd.grad(loss_of(loop(problem, 6, last)), weight, create_graph=True)
    (expected,) = torch.autograd.grad(first.square().sum(), weight)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@every_estimator
def test_nothing_is_recorded_where_nothing_requires_grad(case):
    problem = built(case, "two_streams")
    with torch.no_grad():
        rollout = case.estimator(problem.cell, problem.state, problem.inputs, 7)
    assert all(not leaf.requires_grad for leaf in leaves_of(rollout.state))
    if not case.side_by_side:  # which takes products to go forward
        assert (rollout.stats.cell_evaluations, rollout.stats.vjps) == (7, 0)


@every_estimator
def test_zero_updates_return_the_state_and_its_gradient(case):
    problem = built(case, "affine")
    rollout = case.estimator(problem.cell, problem.state, problem.inputs, 0)
    (gradient,) = torch.autograd.grad(leaves_of(rollout.state)[0].sum(), leaves_of(problem.state)[0])
    assert all(map(torch.equal, leaves_of(rollout.state), leaves_of(problem.state)))
    assert torch.equal(gradient, torch.ones_like(gradient))


@every_estimator
def test_stats_count_what_is_done(case):
    problem = built(case, "two_streams")
    evaluations = []
    problem.cell.register_forward_hook(lambda *_: evaluations.append(1))
    rollout = case.estimator(problem.cell, problem.state, problem.inputs, 9)
    loss_of(rollout.state).backward()
    assert rollout.stats.cell_evaluations == len(evaluations)
    traced = case.traces * period_of(problem.cell)
    if case.backward and not case.side_by_side:
        assert rollout.stats.vjps == (differentiated(case, problem, 9) or 9) + traced


@every_estimator
def test_one_output_without_cotangent(case):
    problem = built(case, "two_streams")
    state = case.estimator(problem.cell, problem.state, problem.inputs, 8).state
    got = gradients(z_L(state).square().sum(), problem)
    expected = gradients(z_L(loop(problem, 8, differentiated(case, problem, 8))).square().sum(), problem)
    for name, gradient in expected.items():
        if gradient is not None and got[name] is not None:
            torch.testing.assert_close(got[name], gradient, rtol=1e-12, atol=1e-13, msg=name)
        else:
            # an update that no cotangent reaches may give None or zero, as autograd's own graph does
            assert all(value is None or not value.any() for value in (gradient, got[name])), name


@every_estimator
def test_a_frozen_cell_still_passes_gradients_to_inputs(case):
    problem = built(case, "two_streams")
    problem.cell.requires_grad_(False)
    got = gradients(loss_of(case.estimator(problem.cell, problem.state, problem.inputs, 8).state), problem)
    expected = gradients(loss_of(loop(problem, 8, differentiated(case, problem, 8))), problem)
    torch.testing.assert_close(got["inputs 0"], expected["inputs 0"], rtol=1e-12, atol=1e-13)
    assert not any("parameter" in name for name in got)
