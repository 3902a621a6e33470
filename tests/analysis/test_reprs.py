"""What is printed fits a screen, however many samples, streams, groups and rows there are, and says what is there."""

import numpy as np
import pytest
import torch

from loopgrad.analysis import (
    Agreement,
    BiasVariance,
    Cost,
    Descent,
    DescentStep,
    FixedPoints,
    GradientGap,
    LyapunovExponents,
    Multistart,
    Recorder,
    StateMap,
    Thresholds,
    VerdictShare,
    classify,
    record,
)
from loopgrad.analysis.plots import residuals
from loopgrad.analysis.summaries import LINES, WIDTH, band_of, quantiles, screen
from loopgrad.analysis.verdicts import LABELS, Verdicts
from loopgrad.gradients import Stationary

B = 300
LONG = "a stream whose name is so long that nobody would want to read all of it " * 3
NAMES = [LONG, *(f"part {i}" for i in range(40))]
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape)


def decaying(streams, batch=B):
    """A recursion of many streams that halves them all."""
    cell = Stationary(lambda z, x: {name: leaf / 2 for name, leaf in z.items()})
    return cell, {name: torch.ones(batch, 2) for name in streams}


def recorded(streams, batch=B, num_steps=20):
    cell, state = decaying(streams, batch)
    return record(cell, state, None, num_steps, lags=4)


def recorder():
    found, z = Recorder(), torch.ones(B, 4)
    for _ in range(4):
        found.push(**dict.fromkeys(NAMES, z))
        z = z / 2
    return found


def verdicts():
    numbers = {name: np.abs(normal(B)) for name in ("residual", "rate", "exponent", "distance", "straightness")}
    label = np.array([LABELS[i % len(LABELS)] for i in range(B)])
    rest = {"period": np.full(B, 3), "lyapunov": normal(B), "radius": normal(B), "at_floor": np.zeros(B, dtype=bool)}
    return Verdicts(LONG, label, **numbers, **rest, floor=1e-7, cycles=999, thresholds=Thresholds())


def agreement():
    parts = {name: Agreement(-0.123456789, 1234567.89, 1e-12) for name in NAMES}
    return Agreement(0.123456789, 0.5, 2.0, parts)


def bias_variance():
    numbers = (12345, *np.abs(normal(11)).tolist())
    return BiasVariance(*numbers, {name: BiasVariance(*numbers) for name in NAMES})


def gap():
    parts = dict.fromkeys(NAMES, Agreement(0.1, 0.2, 0.3))
    return GradientGap(
        LONG, LONG, B, 9, 0.1, 0.2, 0.3, 0.4, 0.5, parts, dict.fromkeys(NAMES, 0.5), normal(B), normal(B)
    )


BIG = {
    "trace": lambda: recorded(NAMES),
    "recorder": recorder,
    "verdicts": verdicts,
    "state map": lambda: StateMap(*decaying(NAMES), None),
    "cost": lambda: Cost(123456789012, 234567890123, 123456, 234567, 12345678901234567, 0.1234567890123),
    "agreement": agreement,
    "bias and variance": bias_variance,
    "gap": gap,
    "descent": lambda: Descent(1.0, 2.0, tuple(DescentStep(*normal(3).tolist(), True) for _ in range(100))),
    "fixed points": lambda: FixedPoints(torch.ones(B, 9), normal(B), normal(B) > 0, normal(B), normal(B)),
    "multistart": lambda: Multistart(torch.ones(5, B, 9), normal(B), normal(B), RNG.integers(1, 5, B)),
    "exponents": lambda: LyapunovExponents(normal(B, 64), normal(B, 64), torch.ones(B, 64)),
    "drawn": lambda: residuals(recorded(["z"])),
    "share": lambda: VerdictShare("solved", "converged", 3, 7, 0.123456789012345, 0.98765432109876),
}


@pytest.mark.parametrize("name", BIG)
def test_a_big_one_fits_a_screen(name):
    text = repr(BIG[name]())
    lines = text.splitlines()
    assert 1 <= len(lines) <= LINES == 12
    assert max(map(len, lines)) <= WIDTH == 120, text


def test_a_trace_shows_streams_samples_updates_period_dtype_and_the_last_residuals():
    trace = recorded(["z_L", "z_H"])
    title, _, joint, low, high = repr(trace).splitlines()
    assert title == "Trace: 20 updates, period 1, 300 samples, lags=4; median [5 %, 95 %]"
    residual = f"{trace.relative['z_L'][-1, 0]:.2g}"
    assert low.split() == ["z_L", "float32", residual, f"{trace.map_relative['z_L'][0]:.2g}"]
    assert high.split()[0] == "z_H" and joint.split() == ["joint", f"{trace.joint_relative[0]:.2g}"]


def test_a_trace_of_no_update_or_of_nothing_finite_can_be_shown():
    assert "0 updates" in repr(recorded(["z"], num_steps=0))
    cell = Stationary(lambda z, x: z * 1e200)
    trace = record(cell, torch.ones(2, 1, dtype=torch.float64), None, 3, reevaluate=torch.float64)
    assert "inf" in repr(trace)
    trace = record(Stationary(lambda z, x: z / 2), torch.ones(2, 1), None, 3, reevaluate=torch.float64)
    assert "float32, F in float64" in repr(trace)


def test_verdicts_show_a_count_per_label_and_the_period_of_cycles():
    flip = record(Stationary(lambda z, x: -z), torch.ones(8, 2), None, 40, lags=4)
    text = repr(classify(flip)["state"])
    assert text.startswith("Verdicts of state: 40 cycles, 8 samples, floor 4.8e-07")
    assert text.splitlines()[2].split()[:5] == ["cycle", "of", "2", "8", "100.0"]


def test_a_recorder_says_what_it_has_seen():
    assert repr(Recorder(lags=2)) == "Recorder: nothing yet, lags=2"
    assert repr(recorder()).startswith("Recorder: 3 updates, period 1, 300 samples, lags=0; streams a stream")


def test_units_can_be_read_and_what_was_not_counted_is_left_out():
    assert repr(Cost(3 * 2**20, 2**22, 6, 5, 5_437_599_744, 0.128)) == (
        "Cost: saved 3 MiB, peak 4 MiB, 6 cell evaluations, 5 vjps, 5.44 GFLOPs, 0.128 s"
    )
    assert "cell" not in repr(Cost(0, 0, None, None, 0, 0.1)) and "s" in repr(Cost(0, 0, None, None, 0, 0.1))


def test_a_table_says_how_much_of_it_is_left_out():
    rows = [[str(i), "x"] for i in range(50)]
    lines = screen("title", ["number", "mark"], rows).splitlines()
    assert len(lines) == LINES and lines[-1] == "  and 41 more" and lines[-2].split() == ["8", "x"]
    assert screen("title", ["number", "mark"], rows[:10]).splitlines()[-1].split() == ["9", "x"]
    assert screen("title", ["number", "mark"], []) == "title"


def test_what_is_not_finite_counts_as_the_largest_and_nan_is_no_number():
    values = np.array([1.0, 2.0, np.nan, np.inf])
    assert quantiles(values, [0.0, 0.5, 1.0]) == [1.0, None, None]
    assert quantiles(np.array([]), [0.5]) == [None]
    assert band_of(values[:2]) == "1.5 [1.1, 1.9]" and band_of(np.array([np.nan])) == "-"
    assert band_of(np.array([3.0, 3.0])) == "3"
