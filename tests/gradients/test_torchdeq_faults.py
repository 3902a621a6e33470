"""What torchdeq 0.1.0 was shown to get wrong, one test per fault, for our implicit gradient; numbers as in the list.

1 and 2 (the scale of the loss, absolute regularisation) and 4 (one NaN) are in test_implicit.py and
test_implicit_gate.py, over all solvers.
"""

import dataclasses
import io
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from loopgrad.gradients import BPTT, ImplicitGradient, Stationary
from loopgrad.gradients.solvers import LINEAR, Anderson, Broyden, Iteration


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, z, x, step):
        return torch.tanh(0.8 * self.linear(z) + x)


@pytest.fixture
def cell():
    torch.manual_seed(0)
    return Cell()


X = torch.linspace(-1, 1, 24).view(4, 6)


def gradient(estimator, cell, num_steps=100, state=None):
    start = torch.zeros(4, 6) if state is None else state
    loss = (estimator(cell, start, X, num_steps).state ** 2).sum()
    return torch.autograd.grad(loss, cell.linear.weight)[0]


def error(got, expected):
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("max_vjps", [1, 2])
@pytest.mark.parametrize("solver", LINEAR)
def test_3_few_products_give_a_rough_gradient_and_not_zero(cell, solver, max_vjps):
    if solver == "bicgstab" and max_vjps == 1:
        pytest.skip("takes two products at a time")
    got = gradient(ImplicitGradient(solver, max_vjps=max_vjps, on_unconverged="ignore"), cell)
    exact = gradient(BPTT(), cell)
    assert got.norm() > 0.3 * exact.norm() and torch.cosine_similarity(got.flatten(), exact.flatten(), dim=0) > 0.7


@pytest.mark.parametrize("solver", LINEAR)
def test_5_and_6_a_bf16_state_under_autocast_with_any_solver(cell, solver):
    exact = gradient(BPTT(), cell)
    for low in (False, True):
        start = torch.zeros(4, 6, dtype=torch.bfloat16 if low else torch.float32)
        module = Stationary(lambda z, x: torch.tanh(0.8 * cell.linear(z) + x).to(z.dtype), parameters=cell)
        with torch.autocast("cpu", torch.bfloat16):
            rollout = ImplicitGradient(solver, forward_rtol=3e-2)(module, start, X, 60)
        (got,) = torch.autograd.grad((rollout.state.float() ** 2).sum(), cell.linear.weight)
        assert error(got, exact) < 0.1 and rollout.stats.verdict.trusted.all()


def test_7_states_taken_on_the_way_each_have_their_implicit_gradient(cell):
    exact = gradient(BPTT(), cell)
    halfway = ImplicitGradient(rtol=1e-5)(cell, torch.zeros(4, 6), X, 60).state
    end = ImplicitGradient(rtol=1e-5)(cell, halfway, X, 60).state
    got = torch.autograd.grad((halfway**2).sum() + (end**2).sum(), cell.linear.weight)[0]
    assert error(got, 2 * exact) < 1e-4


def test_8_two_calls_before_one_backward_and_a_retained_graph(cell):
    estimator = ImplicitGradient(rtol=1e-5)
    states = [estimator(cell, torch.zeros(4, 6), sign * X, 100).state for sign in (1, -1)]
    loss = sum((state**3).sum() * k for k, state in enumerate(states, 1))
    first = torch.autograd.grad(loss, cell.linear.weight, retain_graph=True)[0]
    second = torch.autograd.grad(loss, cell.linear.weight)[0]
    alone = [(estimator(cell, torch.zeros(4, 6), sign * X, 100).state ** 3).sum() for sign in (1, -1)]
    parts = [torch.autograd.grad(loss, cell.linear.weight)[0] for loss in alone]
    assert torch.equal(first, second)
    torch.testing.assert_close(first, parts[0] + 2 * parts[1], rtol=1e-5, atol=1e-6)


def test_9_a_second_derivative_is_refused_and_not_wrong(cell):
    loss = (ImplicitGradient()(cell, torch.zeros(4, 6), X, 50).state ** 2).sum()
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(loss, cell.linear.weight, create_graph=True)


def test_10_a_rotation_does_not_look_like_a_contraction():
    """A Rayleigh quotient of a rotation by 90 degrees is 0; its amplification is 1 / |1 - 0.9 i|."""
    w = torch.tensor(0.9, requires_grad=True)
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    cell = Stationary(lambda z, x: w * z @ turn + x, parameters=[w])
    rollout = ImplicitGradient(rtol=1e-6)(cell, torch.zeros(1, 2), torch.ones(1, 2), 400)
    (got,) = torch.autograd.grad(rollout.state[0, 0], w)
    (exact,) = torch.autograd.grad(BPTT()(cell, torch.zeros(1, 2), torch.ones(1, 2), 400).state[0, 0], w)
    assert error(got, exact) < 1e-4
    assert rollout.stats.verdict.amplification.item() == pytest.approx(1 / 1.81**0.5, rel=1e-3)


@pytest.mark.parametrize("forward", ["unroll", Iteration(), Iteration(0.5), Anderson(), Broyden()])
def test_11_a_tuple_state_with_every_forward_solver(cell, forward):
    two = Stationary(lambda z, x: (torch.tanh(0.8 * cell.linear(z[1]) + x), 0.5 * z[0]), parameters=cell)
    start = (torch.zeros(4, 6), torch.zeros(4, 6))
    got, exact = (
        torch.autograd.grad((e(two, start, X, 200).state[0] ** 2).sum(), cell.linear.weight)[0]
        for e in (ImplicitGradient(rtol=1e-5, forward=forward, forward_rtol=1e-5), BPTT())
    )
    assert error(got, exact) < 1e-3


def test_12_options_can_be_overridden(cell):
    tight = dataclasses.replace(ImplicitGradient(), rtol=1e-6, max_vjps=50)
    assert error(gradient(tight, cell), gradient(BPTT(), cell)) < error(
        gradient(ImplicitGradient(rtol=0.1), cell), gradient(BPTT(), cell)
    )


def test_13_the_residual_of_a_damped_search_is_that_of_the_map(cell):
    found = Iteration(damping=0.01)(lambda z: torch.tanh(0.8 * cell.linear(z) + X), torch.zeros(4, 6), 20)
    image = torch.tanh(0.8 * cell.linear(found.state) + X)
    torch.testing.assert_close(found.residual, (image - found.state).norm(dim=1))


@pytest.mark.parametrize("forward", ["unroll", Iteration(0.5), Anderson(), Broyden()])
def test_14_nothing_needs_cuda(cell, forward, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("something asked for CUDA")

    for owner in (torch.Tensor, nn.Module):
        monkeypatch.setattr(owner, "cuda", refused)
    monkeypatch.setattr(torch.cuda, "is_available", refused)
    assert gradient(ImplicitGradient(forward=forward), cell).norm() > 0


@dataclass
class State:
    a: torch.Tensor
    b: torch.Tensor


def test_15_eval_mode_pickling_dataclass_states_and_mixed_dtypes(cell):
    exact = gradient(BPTT(), cell)
    assert error(gradient(ImplicitGradient(rtol=1e-5), cell.eval()), exact) < 1e-4
    kept = io.BytesIO(pickle.dumps(ImplicitGradient(rtol=1e-5, forward=Anderson())))
    assert pickle.load(kept) == ImplicitGradient(rtol=1e-5, forward=Anderson())

    def update(z, x):
        return State(torch.tanh(0.8 * cell.linear(z.b.float()) + x), z.a.bfloat16())

    module = Stationary(update, parameters=cell)
    start = State(torch.zeros(4, 6), torch.zeros(4, 6, dtype=torch.bfloat16))
    state = ImplicitGradient(forward_rtol=2e-2)(module, start, X, 60).state
    assert (state.a.dtype, state.b.dtype) == (torch.float32, torch.bfloat16)
    (got,) = torch.autograd.grad((state.a**2).sum(), cell.linear.weight)
    assert error(got, exact) < 0.05


def test_16_transforms_that_are_not_supported_raise(cell):
    def loss(weight):
        module = Stationary(lambda z, x: torch.tanh(z @ weight.T + x), parameters=[weight])
        return (ImplicitGradient()(module, torch.zeros(4, 6), X, 20).state ** 2).sum()

    with pytest.raises((RuntimeError, TypeError)):
        torch.func.grad(loss)(cell.linear.weight.detach())


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch's compiler, with BPTT too
def test_16_a_compiled_cell_works(cell):
    compiled = torch.compile(cell, backend="eager", fullgraph=True)
    loss = (ImplicitGradient(rtol=1e-5)(compiled, torch.zeros(4, 6), X, 100).state ** 2).sum()
    (got,) = torch.autograd.grad(loss, cell.linear.weight)
    assert error(got, gradient(BPTT(), cell)) < 1e-4


def test_17_broyden_keeps_no_more_than_its_depth(cell):
    for depth in (1, 2, 30):
        found = Broyden(depth)(lambda z: torch.tanh(0.8 * cell.linear(z) + X), torch.zeros(4, 6), 60, rtol=1e-4)
        assert found.converged.all() and found.evaluations < 60
