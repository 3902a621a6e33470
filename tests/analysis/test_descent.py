"""descent against a quadratic loss, whose change along a step is a polynomial of the step size, and along BPTT."""

import pytest
import torch
from torch import nn

from loopgrad.analysis import cast, descent, gradients_of
from loopgrad.gradients import BPTT, Stationary

CURVATURE = torch.tensor([1.0, 4.0])


class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta, self.unused = nn.Parameter(torch.tensor([2.0, -1.0])), nn.Parameter(torch.ones(3))
        self.register_buffer("calls", torch.zeros(()))


def quadratic(point):
    point.calls += 1
    return (CURVATURE.to(point.theta.dtype) * point.theta.square()).sum() / 2


@pytest.mark.parametrize("g", [[2.0, -4.0], [1.0, 0.0], [-1.0, 2.0], [0.0, 0.0], [10.0, 0.5]])
def test_a_quadratic_changes_by_its_slope_and_its_curvature(g):
    found = descent({"theta": torch.tensor(g), "unused": None}, quadratic, Point(), steps=(1e-3, 0.1, 2.0))
    exact, (u, v) = [2.0, -4.0], g
    assert found.loss == 4.0 and found.product == pytest.approx(u * exact[0] + v * exact[1], abs=1e-14)
    for step in found.steps:
        assert step.predicted == pytest.approx(-step.size * found.product, abs=1e-14)
        curved = step.size**2 * (u * u + 4 * v * v) / 2
        assert step.measured == pytest.approx(-step.size * found.product + curved, abs=1e-13)
        assert step.down == (step.measured < 0)


def recursion():
    torch.manual_seed(0)
    linear = nn.Linear(4, 4)
    return Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear)


def loss(cell):
    x = cast(torch.linspace(-1, 1, 12).reshape(3, 4), next(cell.parameters()).dtype)
    return BPTT()(cell, x * 0, x, 6).state.square().sum()


def test_along_the_exact_gradient_the_prediction_is_right_to_second_order():
    cell = recursion()
    found = descent(gradients_of(loss, cell), loss, cell, steps=(1e-2, 1e-3, 1e-4))
    assert all(step.down for step in found.steps)
    first, second, third = (abs(step.measured - step.predicted) for step in found.steps)
    assert second / first == pytest.approx(1e-2, rel=0.2) and third / second == pytest.approx(1e-2, rel=0.02)


def test_against_the_exact_gradient_the_loss_rises():
    cell = recursion()
    uphill = {name: -g for name, g in gradients_of(loss, cell).items()}
    found = descent(uphill, loss, cell)
    assert found.product < 0 and not any(step.down for step in found.steps)
    assert [step.size for step in found.steps] == [1e-3, 1e-2, 1e-1]


def test_a_loss_that_is_not_finite_has_not_gone_down():
    point = Point()
    found = descent({"theta": torch.tensor([1.0, 0.0]), "unused": None}, lambda p: p.theta[0].log(), point, [3.0])
    assert found.steps[0].predicted < 0 and not found.steps[0].down  # the logarithm of -1


def test_the_module_and_the_generator_are_left_as_they_were():
    point, rng = Point(), torch.get_rng_state()
    theta, calls = point.theta, point.calls
    point.theta.grad = torch.ones(2)

    def noisy(p):
        return quadratic(p) + torch.rand((), dtype=p.theta.dtype)

    found = descent({"theta": torch.ones(2), "unused": None}, noisy, point)
    assert found.steps[0].measured == pytest.approx(-1e-3 * -2.0 + 1e-6 * 2.5, rel=1e-9)  # the same number was drawn
    assert point.theta is theta and point.calls is calls
    assert torch.equal(theta, Point().theta) and theta._version == 0 and calls.item() == 0 and calls._version == 0
    assert torch.equal(theta.grad, torch.ones(2)) and torch.equal(rng, torch.get_rng_state())


def test_wrong_arguments_are_refused():
    g = {"theta": torch.ones(2), "unused": None}
    for steps in ((), (0.0,), (float("nan"),), (-1.0,)):
        with pytest.raises(ValueError, match="steps must be"):
            descent(g, quadratic, Point(), steps)
    with pytest.raises(ValueError, match=r"gradient lacks \['unused'\]"):
        descent({"theta": torch.ones(2)}, quadratic, Point())
    with pytest.raises(ValueError, match=r"gradient\['unused'\] has shape \(1,\) and its parameter \(3,\)"):
        descent({"theta": torch.ones(2), "unused": torch.ones(1)}, quadratic, Point())
    with pytest.raises(TypeError, match="cast the batch"):
        descent(g, lambda p: p.theta.float().sum(), Point())
