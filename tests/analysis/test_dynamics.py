"""Verdicts on systems whose fate is known in closed form, clean and with noise, and on the traps."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from loopgrad.analysis import StateMap, Thresholds, classify, lyapunov, record, sweep_thresholds
from loopgrad.gradients import Stationary

NOISE = (0.0, pytest.param(1e-4, marks=pytest.mark.slow))


def starts(n, count=64, seed=0):
    return torch.randn(count, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(low=0.1, high=0.78):
    return torch.linspace(low, high, 64, dtype=torch.float64).unsqueeze(1)


def rotation(angle, scale=1.0):
    matrix = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return lambda z: scale * z @ torch.tensor(matrix, dtype=torch.float64).T


def logistic(r):
    return lambda z: r * z * (1 - z)


def henon(z):
    return torch.stack([1 - 1.4 * z[:, 0] ** 2 + z[:, 1], 0.3 * z[:, 0]], dim=1)


def ikeda(z):
    """u = 0.9, chaotic."""
    t = 0.4 - 6 / (1 + z.square().sum(dim=1))
    x, y = z.unbind(dim=1)
    return torch.stack([1 + 0.9 * (x * t.cos() - y * t.sin()), 0.9 * (x * t.sin() + y * t.cos())], dim=1)


def cell_of(fn, noise=0.0):
    generator = torch.Generator().manual_seed(7)

    def update(z, x):
        new = fn(z)
        if noise:
            size = new.square().mean(dim=1, keepdim=True).sqrt()
            new = new + noise * size * torch.randn(new.shape, generator=generator, dtype=new.dtype)
        return new

    return Stationary(update)


@cache
def largest_exponents(fn, start):
    """Those of the system itself, which noise does not change: once for all its noises."""
    f = StateMap(cell_of(fn), start, None)
    return lyapunov(f, f.point, 400, transient=400).mean[:, 0]


def labelled(fn, start, num_steps, noise=0.0, exponent=False, **options):
    trace = record(cell_of(fn, noise), start, None, num_steps, lags=16)
    if exponent:
        options["lyapunov"] = largest_exponents(fn, start)
    return classify(trace, floor=4 * noise if noise else None, **options)["state"]


GOLDEN = math.pi * (5**0.5 - 1)
SYSTEMS = [
    ("half", lambda z: 0.5 * z, starts(3), 200, "converged", False),
    ("slow, early", lambda z: 1 + 0.99 * (z - 1), 5 + starts(3), 80, "converging", False),
    ("slow, late", lambda z: 1 + 0.99 * (z - 1), starts(3), 2000, "converged", False),
    ("golden rotation", rotation(GOLDEN), starts(2), 200, "quasiperiodic", True),
    ("rotation by a fifth", rotation(2 * math.pi / 5), starts(2), 200, "cycle", True),
    ("spiral", rotation(1.0, 0.9), starts(2), 200, "converged", False),
    ("growing", lambda z: 1.01 * z, starts(3), 200, "diverging", False),
    ("growing rotation", rotation(1.0, 1.001), starts(2), 400, "diverging", False),
    ("logistic 2.8", logistic(2.8), unit(), 200, "converged", False),
    ("logistic 3.2", logistic(3.2), unit(), 200, "cycle", True),
    ("logistic 3.5", logistic(3.5), unit(), 400, "cycle", True),
    ("logistic 3.9", logistic(3.9), unit(), 400, "chaotic", True),
    ("logistic 4", logistic(4.0), unit(), 400, "chaotic", True),
    ("henon", henon, 0.1 * starts(2), 400, "chaotic", True),
    ("ikeda", ikeda, 0.1 * starts(2), 400, "chaotic", True),
    ("translation", lambda z: z + 1, starts(3), 200, "drift", False),
]
MORE = ("slow, late", "logistic 3.5", "logistic 3.9", "ikeda")  # which take longest
CASES = [pytest.param(*system, marks=pytest.mark.slow) if system[0] in MORE else system for system in SYSTEMS]
every_system = pytest.mark.parametrize(("name", "fn", "start", "steps", "label", "exponent"), CASES)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("noise", NOISE)
@every_system
def test_every_start_of_a_known_system_has_its_label(name, fn, start, steps, label, exponent, noise):
    if noise and name == "logistic 4":
        pytest.skip("noise drives it out of [0, 1], and then it does diverge")
    verdicts = labelled(fn, start, steps, noise, exponent)
    assert verdicts.counts() == {label: 64}


def delayed_logistic(r):
    """A ring from r = 2 on, a spiral of radius sqrt(r - 1) before."""
    return lambda z: torch.stack([z[:, 1], r * z[:, 1] * (1 - z[:, 0])], dim=1)


def test_rest_that_noise_stirs_is_rest():
    # the spiral enlarges noise of 1e-4 beyond the floor; it hovers about its fixed point, and goes nowhere
    verdicts = labelled(delayed_logistic(1.9), 0.4 + 0.2 * unit().repeat(1, 2), 600, 1e-4)
    assert verdicts.counts() == {"converged": 64} and not verdicts.at_floor.all()


@pytest.mark.slow
def test_chaos_is_no_trend_where_its_exponent_is_known():
    w = torch.randn(64, 64, generator=torch.Generator().manual_seed(7), dtype=torch.float64) / 8
    verdicts = labelled(lambda z: torch.tanh(2.5 * z @ w), starts(64), 600, exponent=True)
    assert (verdicts.lyapunov > 0.1).all() and verdicts.counts() == {"chaotic": 64}


def test_a_real_divergence_has_a_positive_exponent_and_is_one_all_the_same():
    assert labelled(lambda z: 1.05 * z, starts(3), 100, exponent=True).counts() == {"diverging": 64}


def test_steps_that_turn_back_add_up_although_their_sizes_do_not():
    # logistic at 3: x - 2/3 ~ (-1)^n / sqrt(18 n), steps of size n^(-1/2) that alternate
    verdicts = labelled(logistic(3.0), unit(), 1600)
    assert verdicts.counts() == {"converging": 64}
    assert np.median(verdicts.exponent) == pytest.approx(-0.5, abs=0.02)


def test_rates_and_periods_are_those_of_the_systems():
    assert labelled(lambda z: 1 + 0.99 * (z - 1), starts(3), 40).rate == pytest.approx(np.full(64, 0.99), abs=1e-6)
    assert labelled(lambda z: 1.01 * z, starts(3), 200).rate == pytest.approx(np.full(64, 1.01), abs=1e-6)
    assert (labelled(rotation(2 * math.pi / 5), starts(2), 200).period == 5).all()
    assert (labelled(logistic(3.2), unit(), 200).period == 2).all()
    assert (labelled(logistic(3.5), unit(), 400).period == 4).all()


def test_algebraic_decay_is_converging_and_not_converged():
    """z ~ 1/t under z (1 - z): the steps add up, the distance left is as large as the state."""
    verdicts = labelled(logistic(1.0), unit(), 200)
    assert verdicts.counts() == {"converging": 64}
    assert verdicts.exponent == pytest.approx(np.full(64, -2.0), abs=0.15)


def test_steps_that_do_not_add_up_are_a_drift():
    """Steps of 1/t: the residual falls for ever, and the state goes anywhere."""

    def update(z):
        return torch.stack([z[:, 0] + 1 / z[:, 1], z[:, 1] + 1], dim=1)

    trace = record(Stationary(lambda z, x: update(z)), torch.ones(64, 2, dtype=torch.float64), None, 400, lags=16)
    assert classify(trace)["state"].counts() == {"drift": 64}


def test_bfloat16_that_stops_short_of_its_fixed_point_is_not_converged():
    """z -> 0.99 (z - 1) + 1 from 4 stops at 2.156 in bfloat16, with a residual of exactly zero."""
    cell = Stationary(lambda z, x: 0.99 * (z - 1) + 1)
    start = torch.full((64, 1), 4.0, dtype=torch.bfloat16)
    native = record(cell, start, None, 300, lags=16)
    assert not native.joint.any()
    assert classify(native)["state"].counts() == {"stalled": 64}
    judged = classify(record(cell, start, None, 300, lags=16, reevaluate=torch.float64))["state"]
    assert judged.counts() == {"stalled": 64}
    assert judged.residual == pytest.approx(np.full(64, 5.4e-3 * 2.156 / 2.156), rel=0.6)


def test_a_map_that_first_pushes_apart_converges_all_the_same():
    matrix = torch.tensor([[0.9, 8.0], [0.0, 0.8]], dtype=torch.float64)
    assert labelled(lambda z: z @ matrix.T, starts(2), 400).counts() == {"converged": 64}


def test_streams_are_judged_apart_and_jointly():
    def update(z, x):
        return {"settles": 0.5 * z["settles"], "turns": rotation(GOLDEN)(z["turns"])}

    state = {"settles": starts(3), "turns": starts(2)}
    found = classify(record(Stationary(update), state, None, 100, lags=16))
    labels = {name: set(verdicts.counts()) for name, verdicts in found.items()}
    assert labels == {"settles": {"converged"}, "turns": {"orbit"}, "joint": {"orbit"}}


def test_a_stream_that_rests_within_a_cycle_is_compared_a_cycle_apart():
    """z_L moves twice and z_H once per cycle: update by update neither would look settled or periodic."""

    class Cell(torch.nn.Module):
        period = 3

        def forward(self, state, inputs, step):
            if step % 3 < 2:
                return {**state, "z_L": 0.5 * state["z_L"] + state["z_H"] + (step % 3)}
            return {**state, "z_H": 0.2 * state["z_L"]}

    state = {"z_L": starts(4), "z_H": starts(4)}
    found = classify(record(Cell(), state, None, 180, lags=16))
    assert all(verdicts.counts() == {"converged": 64} for verdicts in found.values())


def test_runs_that_are_too_short_say_so_and_what_is_not_finite_diverges():
    assert labelled(lambda z: 0.5 * z, starts(3), 8).counts() == {"too short": 64}
    assert labelled(lambda z: z**3 * 10, 2 + starts(3).abs(), 60).counts() == {"diverging": 64}


def test_a_sweep_shows_which_labels_hang_on_a_threshold():
    trace = record(cell_of(lambda z: 0.9 * z), starts(3), None, 60, lags=16)
    found = {factor: verdicts["state"] for factor, verdicts in sweep_thresholds(trace, (0.001, 1.0)).items()}
    assert found[1.0].thresholds == Thresholds() and found[0.001].thresholds.rtol == 1e-6
    assert found[0.001].counts() == {"converging": 64}


def test_a_trace_without_lags_is_refused():
    with pytest.raises(ValueError, match="lags=16"):
        classify(record(cell_of(lambda z: z), starts(2), None, 20))
    with pytest.raises(ValueError, match="not one of"):
        classify(record(cell_of(lambda z: z), starts(2), None, 20, lags=4), streams=["z_H"])
