"""Analyses of cells in the shape of public models: recorded distances, the cycle as a map, and its two products."""

import pytest
import torch
from foreign_cells import FOREIGN, build
from problems import detached, leaves_of, loop

from loopgrad.analysis import StateMap, record

pytestmark = pytest.mark.usefixtures("float64")
every_model = pytest.mark.parametrize("model", FOREIGN)

# a surrogate gradient has no rule for forward differentiation
NOT_FORWARD = {"spiking": "implement the jvp function for custom autograd.Function"}


def floating(state):
    return [leaf for leaf in leaves_of(state) if leaf.is_floating_point()]


def begun(model):
    foreign = build(model)
    torch.manual_seed(1)
    return foreign, foreign.begin()


@every_model
def test_recorded_updates_are_those_of_the_loop(model):
    foreign, problem = begun(model)
    drawn = torch.get_rng_state()
    trace = record(problem.cell, problem.state, problem.inputs, foreign.num_steps, lags=4)
    assert torch.equal(torch.get_rng_state(), drawn)
    foreign, problem = begun(model)
    state, moved = problem.state, []
    for step in range(foreign.num_steps):
        before = floating(detached(state))
        state = problem.cell(state, problem.inputs, step)
        moved.append(sum((a - b).square().sum() for a, b in zip(floating(state), before, strict=True)).sqrt())
    rows = torch.stack([torch.from_numpy(found) for found in trace.update.values()])  # nan where an update rests
    total = (rows**2).nansum((0, 2)).sqrt()
    torch.testing.assert_close(total, torch.stack(moved).detach(), rtol=1e-9, atol=1e-12)


@every_model
def test_state_map_is_the_first_cycle_in_evaluation_mode(model):
    _, problem = begun(model)
    f = StateMap(problem.cell, problem.state, problem.inputs)
    image = floating(f.state(f(f.point)))
    _, problem = begun(model)
    problem.cell.eval()
    expected = floating(loop(problem, getattr(problem.cell, "period", 1)))
    for a, b in zip(image, expected, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-12)


@every_model
def test_forward_and_backward_products_of_the_state_map_agree(model):
    _, problem = begun(model)
    f = StateMap(problem.cell, problem.state, problem.inputs)
    u, v = torch.randn_like(f.point), torch.randn_like(f.point)
    torch.manual_seed(2)
    with f.linearised(f.point) as pull:
        right = (u * pull(v)).sum()
    if model in NOT_FORWARD:
        with pytest.raises(RuntimeError, match=NOT_FORWARD[model]):
            f.push(f.point, u)
        return
    torch.manual_seed(2)  # the automaton draws a mask in evaluation mode too
    (pushed,) = f.push(f.point, u)[1]
    torch.testing.assert_close((v * pushed).sum(), right, rtol=1e-9, atol=1e-12)
