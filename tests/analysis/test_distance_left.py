"""What is left to a fixed point by the spectral radius of the cycle, on linear maps whose fixed point is known."""

import numpy as np
import pytest
import torch

from loopgrad.analysis import StateMap, classify, record, spectral_radius
from loopgrad.gradients import Stationary


def linear(rate, target=1.0):
    """A map whose fixed point is `target`."""
    return Stationary(lambda z, x: rate * z + (1 - rate) * target)


def judged(cell, start, num_steps, radius=None, reevaluate=torch.float64, **options):
    trace = record(cell, start, None, num_steps, lags=16, reevaluate=reevaluate)
    return classify(trace, radius=radius, **options)["state"]


def left(cell, start, num_steps, target=1.0):
    """The true distance at the end, in units of the state as `Trace.scale` is."""
    states = [start]
    for step in range(num_steps):
        states.append(cell(states[-1], None, step))
    norms = torch.stack([z.double().norm(dim=1) for z in states])
    return ((states[-1].double() - target).norm(dim=1) / norms.quantile(0.9, dim=0)).numpy()


def filled(value, dtype, width=4):
    return torch.full((3, width), value, dtype=dtype)


@pytest.mark.parametrize(
    ("dtype", "rate", "start", "steps", "label"),
    [
        (torch.bfloat16, 0.5, 4.0, 60, "converged"),
        (torch.bfloat16, 0.75, -3.0, 80, "converged"),
        (torch.bfloat16, 0.995, 15.0, 200, "stalled"),
        (torch.bfloat16, 0.999, 3.0, 60, "stalled"),
        (torch.float32, 0.9, 4.0, 400, "converged"),
        (torch.float32, 1 - 2**-22, 15.0, 60, "stalled"),  # steps of four last bits
    ],
)
def test_a_run_that_rounding_stopped_is_judged_by_what_is_left(dtype, rate, start, steps, label):
    cell, z = linear(rate), filled(start, dtype)
    radius = spectral_radius(StateMap(cell, z, None), StateMap(cell, z, None).point)
    assert radius == pytest.approx(np.full(3, rate))
    verdicts = judged(cell, z, steps, radius)
    assert verdicts.counts() == {label: 3}
    assert verdicts.distance == pytest.approx(left(cell, z, steps), rel=0.02, abs=1e-6)
    assert (verdicts.radius == radius).all()


def test_without_a_re_evaluation_what_rounding_may_hide_is_left():
    cell, z = linear(0.5), filled(4.0, torch.bfloat16)
    blind = judged(cell, z, 60, np.full(3, 0.5), None)
    assert blind.counts() == {"stalled": 3} and blind.distance == pytest.approx(np.full(3, 2 * 7.8e-3))
    assert (blind.distance >= left(cell, z, 60)).all()
    fine = judged(cell, z, 60, np.full(3, 0.5), None, floor=2.9e-3)  # a measured floor
    assert fine.counts() == {"converged": 3} and fine.distance == pytest.approx(np.full(3, 5.8e-3))
    # float32 resolves rtol, and yet a slow map may be anywhere
    slow = judged(linear(1 - 2**-22), filled(15.0, torch.float32), 60, np.full(3, 1 - 2**-22), None)
    assert slow.counts() == {"stalled": 3} and (slow.distance > 1).all()


def test_without_a_radius_labels_and_distances_are_as_they_were():
    cell, z = linear(0.5), filled(4.0, torch.bfloat16)
    native = judged(cell, z, 60, None, None)
    assert native.counts() == {"stalled": 3} and np.isnan(native.radius).all()
    mixed = judged(cell, z, 60, np.array([0.5, np.nan, 0.5]), None, floor=2.9e-3)
    assert mixed.label.tolist() == ["converged", "stalled", "converged"]


def test_a_radius_of_one_or_more_leaves_the_distance_unknown():
    verdicts = judged(linear(0.5), filled(4.0, torch.bfloat16), 60, np.array([1.0, 1.3, 0.5]))
    assert verdicts.label.tolist() == ["stalled", "stalled", "converged"]
    assert np.isnan(verdicts.distance[:2]).all()


def test_a_run_that_still_moves_is_on_its_way_whatever_its_radius():
    cell, z = linear(1 - 1e-6), filled(1.5, torch.float64)
    verdicts = judged(cell, z, 200, np.full(3, 1 - 1e-6))
    assert "stalled" not in verdicts.counts() and "converged" not in verdicts.counts()
    assert verdicts.distance == pytest.approx(left(cell, z, 200), rel=1e-3)
    slow = judged(linear(0.99), filled(5.0, torch.float64), 80, np.full(3, 0.99))
    assert slow.counts() == {"converging": 3}


def test_spirals_know_their_distance_too():
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, 0.4], [-0.4, 0.0]], dtype=torch.float64))
    cell = Stationary(lambda z, x: 1 + 0.98 * (z - 1) @ turn.to(z))
    z = torch.tensor([[3.0, 2.0], [-4.0, 1.0]], dtype=torch.float64)
    radius = spectral_radius(StateMap(cell, z, None), z)
    assert radius == pytest.approx(np.full(2, 0.98))
    verdicts = judged(cell, z, 600, radius)
    assert verdicts.counts() == {"converged": 2}


def test_radii_are_taken_by_stream_where_they_are_given_so():
    def update(z, x):
        return {"fast": 0.5 * z["fast"] + 0.5, "slow": 0.995 * z["slow"] + 0.005}

    state = {"fast": filled(4.0, torch.bfloat16), "slow": filled(15.0, torch.bfloat16)}
    trace = record(Stationary(update), state, None, 200, lags=16, reevaluate=torch.float64)
    radius = {"fast": np.full(3, 0.5), "slow": np.full(3, 0.995), "joint": np.full(3, 0.995)}
    found = {name: verdicts.counts() for name, verdicts in classify(trace, radius=radius).items()}
    assert found == {"fast": {"converged": 3}, "slow": {"stalled": 3}, "joint": {"stalled": 3}}
