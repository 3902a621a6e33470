"""The coupled recursions against the same equations written by hand in plain float64 autograd."""

from fractions import Fraction

import pytest
import torch
from cells import build
from problems import leaves_of
from torch import nn

from loopgrad.gradients import BPTT, Stationary
from loopgrad.models import HRM, TRM, Damped, Leapfrog, Momentum

COUPLINGS = {
    "damped 1/2": lambda cell: Damped(cell),
    "damped 1/4": lambda cell: Damped(cell, Fraction(1, 4)),
    "damped 4/5": lambda cell: Damped(cell, "4/5"),
    "leapfrog": lambda cell: Leapfrog(cell, 0.25),
    "momentum": lambda cell: Momentum(cell, 0.875),
}


def two_step(f, z, num_steps, kept, factor):
    before, now = z, z
    for step in range(num_steps):
        before, now = now, kept * before + factor * f(now, step)
    return now


def by_hand(name, f, z, num_steps):
    if name == "momentum":
        velocity = torch.zeros_like(z)
        for step in range(num_steps):
            velocity = 7 / 8 * velocity + 1 / 8 * f(z, step)
            z = z + velocity
        return z
    kept, factor = {"damped 1/2": (0.5, 0.5), "damped 1/4": (0.75, 0.25), "damped 4/5": (0.2, 0.8)}.get(name, (1, 0.25))
    return two_step(f, z, num_steps, kept, factor)


@pytest.mark.parametrize("name", COUPLINGS)
def test_recursion_and_gradient_are_those_of_the_equation(name):
    linear = nn.Linear(5, 5, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.linspace(-0.4, 0.4, 25).view(5, 5))
        linear.bias.copy_(torch.linspace(-1, 1, 5))
    cell = COUPLINGS[name](Stationary(lambda z, x: torch.tanh(linear(z)) * x, parameters=linear))
    z = torch.linspace(-2, 2, 10, dtype=torch.float64).view(2, 5).requires_grad_()
    x = torch.linspace(0.5, 1, 10, dtype=torch.float64).view(2, 5).requires_grad_()
    sources = [z, x, *linear.parameters()]
    ours = BPTT()(cell, z, x, 21).state
    expected = by_hand(name, lambda z, step: torch.tanh(linear(z)) * x, z, 21)
    # each update rounds by a few 2^-32, and momentum adds up velocities
    torch.testing.assert_close(ours, expected, rtol=0, atol=21 * 21 * 2.0**-32)
    pairs = zip(*(torch.autograd.grad(s.sin().sum(), sources) for s in (ours, expected)), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", COUPLINGS)
@pytest.mark.parametrize("problem", ["two_streams", "recurrent", "dataclass_state"])
def test_one_update_is_undone_on_every_structure_of_state(name, problem):
    case = build(problem, torch.float32)
    cell = COUPLINGS[name](case.cell)
    state = cell.couple(case.state)
    for step in range(13):
        after = cell(state, case.inputs, step)
        undone = cell(after, case.inputs, step, cell.note(state, after, step))
        assert all(map(torch.equal, leaves_of(undone.before), leaves_of(state)))
        state = after


def test_a_fixed_point_of_the_cycle_is_one_of_the_damped_recursion():
    """TRM's order of updates: z_L twice, then z_H; its cycle map has a fixed point that no single update has."""
    problem = build("two_streams")
    with torch.no_grad():
        for parameter in problem.cell.parameters():
            parameter *= 0.5
    state = problem.state
    for step in range(300):
        state = problem.cell(state, problem.inputs, step)
    for beta in ("1/2", "1/8", "4/5"):
        damped = Damped(problem.cell, beta)
        last = BPTT()(damped, state, problem.inputs, 50).state
        for key in state:
            torch.testing.assert_close(last[key], state[key], rtol=0, atol=1e-7)
        far = BPTT()(damped, problem.state, problem.inputs, 400).state
        for key in state:
            torch.testing.assert_close(far[key], state[key], rtol=0, atol=1e-6)


def test_streams_that_an_update_hands_through_keep_their_pair():
    problem = build("two_streams", torch.float32)
    cell = Leapfrog(problem.cell, 0.5)
    start = cell.couple(problem.state)
    after = cell(start, problem.inputs, 0)  # an update of z_L
    assert after.current["z_H"] is start.current["z_H"] and after.other["z_H"] is start.other["z_H"]
    assert torch.equal(after.other["z_L"], start.current["z_L"])
    assert cell.period == 3 and Damped(problem.cell).period == 1


@pytest.mark.parametrize("coupling", ["damped", "leapfrog", "momentum"])
def test_models_take_a_coupling_by_name(coupling):
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    for model in (
        TRM(5, 16, hidden_size=16, num_heads=2, coupling=coupling, coupling_rate="1/4"),
        HRM(5, 16, hidden_size=16, num_heads=2, H_layers=1, L_layers=1, coupling=coupling),
    ):
        output = model(None, tokens, None, BPTT())
        assert output.logits.shape == (2, 16, 5) and set(output.state) == {"z_L", "z_H"}
        assert output.state["z_H"].dtype == torch.float32
    bf16 = TRM(5, 16, hidden_size=16, num_heads=2, coupling=coupling, forward_dtype=torch.bfloat16)
    assert bf16(None, tokens, None, BPTT()).state["z_H"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: Damped(c, 0.8), "such as '4/5'"),
        (lambda c: Damped(c, 1), "between 0 and 1"),
        (lambda c: Damped(c, "half"), "must be a fraction"),
        (lambda c: Momentum(c, "9/8"), "between 0 and 1"),
        (lambda c: Leapfrog(c, 0.0), "not zero"),
        (lambda c: Damped(c, arithmetic="int8"), "'exact', 'float64' or 'float32'"),
        (lambda c: Leapfrog(c, per="step"), "'cycle' or 'update'"),
        (lambda c: TRM(5, 16, hidden_size=16, num_heads=2, coupling="damp"), "'damped', 'leapfrog', 'momentum'"),
        (lambda c: TRM(5, 16, hidden_size=16, num_heads=2, coupling_rate=0.5), "no effect"),
        (lambda c: TRM(5, 16, hidden_size=16, num_heads=2, coupling="leapfrog", coupling_rate="x"), "a number"),
    ],
)
def test_wrong_choices_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(Stationary(lambda z, x: z))


def test_a_plain_function_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match="Stationary"):
        Damped(lambda z, x, step: z)  # pyright: ignore
