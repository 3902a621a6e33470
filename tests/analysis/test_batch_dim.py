"""Analyses that are told where the batch is: a hand-written copy with the batch first, and samples run alone."""

import numpy as np
import pytest
import torch
from batch_cases import CASES, B, build, swapped
from problems import leaves_of
from torch import nn

from loopgrad.analysis import (
    Recorder,
    StateMap,
    eigenvalues,
    find_fixed_points,
    gradient_gaps,
    lyapunov,
    multistart,
    operator_norm,
    record,
    rounding_error,
    spectral_radius,
)
from loopgrad.gradients import BPTT, BatchDims, ForwardGradient, ReversibleBPTT, TruncatedBPTT
from loopgrad.models import Damped


def maps(case, dtype=torch.float64):
    """The map of a case that is told where the batch is, and that of the copy."""
    built = build(case, dtype)
    steps = range(1, 1 + built.copy.period)
    told = StateMap(built.cell, built.state, built.inputs, steps, batch_dim=built.batch_dim)
    return built, told, StateMap(built.copy, built.move(built.state), built.move_inputs(built.inputs), steps)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("case", CASES)
def test_a_map_and_what_is_measured_of_it_are_those_of_the_copy(case):
    built, f, copy = maps(case)
    assert torch.equal(f.point, copy.point) and torch.equal(f(f.point), copy(copy.point))
    for leaf, given in zip(leaves_of(f.state(f.point)), leaves_of(built.state), strict=True):
        assert torch.equal(leaf, given)
    starts = torch.stack([f.point, torch.zeros_like(f.point)])
    for measure in (
        lambda f: eigenvalues(f, f.point, k=3),
        lambda f: operator_norm(f, f.point),
        lambda f: lyapunov(f, f.point, 10, blocks=2).mean,
        lambda f: find_fixed_points(f, f.point).residual,
        lambda f: multistart(f, starts, 5).end.numpy(),
    ):
        np.testing.assert_allclose(measure(f), measure(copy), rtol=1e-9, atol=1e-12)
    assert repr(f).startswith(f"StateMap of {type(built.cell).__name__},")


@pytest.mark.parametrize("case", ["stack", "convolved", "heads"])
def test_the_spectrum_of_a_sample_is_that_of_its_run_alone(case):
    built, f, _ = maps(case)
    together = spectral_radius(f, f.point)
    dim = BatchDims((1, 0) if case == "stack" else 1, None if built.inputs is None else 1)
    for i in range(B):

        def own(leaf, d, i=i):
            return leaf.narrow(d, i, 1)

        state = (own(built.state[0], 1), own(built.state[1], 0)) if case == "stack" else own(built.state, 1)
        inputs = None if built.inputs is None else own(built.inputs, 1)
        if case == "heads":  # it has room for three samples
            state = state.expand(B, B, 2).contiguous()
        steps = range(1, 2)
        alone = StateMap(built.cell, state, inputs, steps, batch_dim=dim)
        assert spectral_radius(alone, alone.point)[0] == pytest.approx(together[i], rel=1e-12)


class Wide(nn.Module):
    """Two layers of sixty on three samples, above the size up to which spectra are taken of the whole batch."""

    def __init__(self, shift):
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.shift, self.rows = nn.Parameter(torch.randn(2, 60, 60) / 8), shift, []

    def forward(self, state, inputs, step):
        self.rows.append(state.shape[1])
        return torch.tanh(state @ self.weight + self.shift(inputs))


@pytest.mark.parametrize("told", [None, 1])
def test_above_96_features_a_sample_runs_alone_where_it_is_said_to_hold_its_own_inputs(told):
    cell, inputs = Wide(lambda x: x), torch.randn(2, B, 60)
    f = StateMap(cell, torch.randn(2, B, 60), inputs, batch_dim=BatchDims(1, inputs=told))
    blocks = f.jacobians(f.point)
    one = f.sample(1)
    cell.rows.clear()
    torch.testing.assert_close(one.jacobians(one.point)[0], blocks[1], rtol=1e-12, atol=1e-14)
    assert set(cell.rows) == {B if told is None else 1}
    found = spectral_radius(f, f.point)
    np.testing.assert_allclose(found, torch.linalg.eigvals(blocks).abs().amax(1).numpy(), rtol=1e-6)


def same(trace, other):
    for name in trace.update:
        # the hand-written copy hands nothing on: it moves by zero what the cell does not touch
        np.testing.assert_array_equal(np.nan_to_num(trace.update[name]), np.nan_to_num(other.update[name]))
        np.testing.assert_array_equal(trace.norm[name], other.norm[name])
    np.testing.assert_array_equal(trace.joint, other.joint)


@pytest.mark.parametrize("case", CASES)
def test_a_recording_is_that_of_the_copy(case):
    built = build(case)
    how = {"at": 2, "lags": 2, "reevaluate": torch.float64}
    trace = record(built.cell, built.state, built.inputs, 6, batch_dim=built.batch_dim, **how)
    other = record(built.copy, built.move(built.state), built.move_inputs(built.inputs), 6, **how)
    same(trace, other)
    recorder = Recorder(lags=2, batch_dim=built.batch_dim)
    with recorder.attach(built.cell):
        BPTT()(built.cell, built.state, built.inputs, 6)
    for name, moved in recorder.trace().update.items():
        np.testing.assert_array_equal(moved, trace.update[name])


def test_a_recording_of_a_coupled_cell_is_that_of_z_t():
    built = build("stack")
    cell, copy = Damped(built.cell), Damped(built.copy)
    trace = record(cell, built.state, built.inputs, 4, batch_dim=(1, 0))
    same(trace, record(copy, built.move(built.state), swapped(built.inputs), 4))
    recorder = Recorder(batch_dim=(1, 0))
    with recorder.attach(cell):
        ReversibleBPTT()(cell, built.state, built.inputs, 4)
    np.testing.assert_array_equal(recorder.trace().update["1"], trace.update["1"])


def test_a_stream_that_an_update_hands_on_is_not_measured_anew():
    """The memory stands still in every other update: the same object, as with the batch first."""
    built = build("memories")
    trace = record(built.cell, built.state, built.inputs, 4, batch_dim=built.batch_dim)
    assert np.isnan(trace.update["c"][0]).all() and not np.isnan(trace.update["c"][1]).any()


def test_streams_that_are_pushed_have_the_batch_where_the_recorder_is_told():
    recorder, plain = Recorder(batch_dim={"h": 1, "y": 0}), Recorder()
    h, y = torch.randn(2, B, 4), torch.randn(B, 2)
    for t in range(3):
        recorder.push(h=h + t, y=y)
        plain.push(h=swapped(h + t), y=y)
    same(recorder.trace(), plain.trace())
    with pytest.raises(ValueError, match=r"stream h has shape \(4,\), before it had"):
        recorder.push(h=torch.zeros(4))


@pytest.mark.parametrize("batch_dim", [2, {"h": 1}, {"h": 1, "z": 0}, (1, 0)], ids=str)
def test_a_batch_dim_that_does_not_fit_the_streams_is_refused(batch_dim):
    with pytest.raises(ValueError, match=r"batch_dim=.* (does not fit state|takes dimension 2)"):
        Recorder(batch_dim=batch_dim).push(h=torch.zeros(2, B, 4), y=torch.zeros(B, 2))


def test_rounding_and_gaps_are_those_of_the_copy():
    built = build("stack", torch.float32)
    moved = built.move(built.state), swapped(built.inputs)
    found = rounding_error(built.cell, built.state, built.inputs, batch_dim=(1, 0))
    np.testing.assert_array_equal(found, rounding_error(built.copy, *moved))
    built = build("stack")
    moved = built.move(built.state), swapped(built.inputs)
    estimators = {"truncated": TruncatedBPTT(2), "noise": ForwardGradient(8, seed=0)}

    def told(module, estimator, rows):
        given = ((built.state[0][:, rows], built.state[1][rows]), built.inputs[:, rows])
        return estimator(module, *given, B, batch_dim=built.batch_dim).state[0].square().sum()

    def first(module, estimator, rows):
        state = (moved[0][0][rows], moved[0][1][rows])
        return estimator(built.copy, state, moved[1][rows], B).state[0].square().sum()

    samples = {"all": [0, 1, 2], "last": [2]}
    run = (built.cell, built.state, built.inputs, B)
    gaps = gradient_gaps(estimators, told, built.cell, *run, samples=samples, batch_dim=built.batch_dim)
    estimators["noise"] = ForwardGradient(8, seed=0)
    others = gradient_gaps(estimators, first, built.cell, built.copy, *moved, B, samples=samples)
    for gap, other in zip(gaps, others, strict=True):
        assert gap.cosine == pytest.approx(other.cosine, rel=1e-9) and gap.count == other.count
        np.testing.assert_allclose(gap.residual, other.residual, rtol=1e-12)
        np.testing.assert_allclose(gap.radius, other.radius, rtol=1e-9)
