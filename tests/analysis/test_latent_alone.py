"""Accumulators, outputs and counters kept as floats: where the latent state is named, they are not judged."""

import numpy as np
import pytest
import torch
from torch import nn

from loopgrad.analysis import (
    CellSite,
    Recorder,
    StateMap,
    classify,
    eigenvalues,
    find_fixed_points,
    gradient_gaps,
    lyapunov,
    record,
    rounding_error,
    spectral_radius,
)
from loopgrad.gradients import BPTT, ForwardGradient, ForwardMode, RandomTruncation, Stationary
from loopgrad.models import Damped

W = 0.4 * torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
START = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def moved(h):
    return torch.tanh(h @ W.to(h)) + 0.1


class Bare(nn.Module):
    def forward(self, state, inputs, step):
        return moved(state)


class Summing(nn.Module):
    """A loss per sample, a counter kept as a float, and a mean over the batch, which has no batch dimension."""

    def forward(self, state, inputs, step):
        h = moved(state["z"]["h"])
        state["count"] += 1  # in place: it is a copy
        rest = {"loss": state["loss"] + h.square().sum(1), "mean": state["mean"] + h.mean(), "note": "a"}
        return {"z": {"h": h}, "count": state["count"], **rest}


class Ponder(nn.Module):
    """Adaptive computation time: remainders, a weighted mean of states, and the number of updates, all floating."""

    def forward(self, state, inputs, step):
        h, halted, mean, updates = state
        h = moved(h)
        p = torch.where(halted < 1, torch.full_like(halted, 0.3).minimum(1 - halted), 0)
        return h, halted + p, mean + p[:, None] * h, updates + (halted < 1)


def zeros():
    return torch.zeros(3, dtype=torch.float64)


CELLS = {
    "sums": (Summing, lambda h: {"z": {"h": h}, "count": zeros(), "loss": zeros(), "mean": zeros()[0], "note": "a"}),
    "ponder": (Ponder, lambda h: (h, zeros(), torch.zeros_like(h), zeros())),
}
LATENT = {"sums": ("z",), "ponder": ("0",)}
STREAM = {"sums": "z.h", "ponder": "0"}


@pytest.mark.parametrize("name", CELLS)
def test_a_trace_is_that_of_the_named_leaves_alone(name):
    kind, build = CELLS[name]
    options = {"lags": 4, "reevaluate": torch.float64}
    expected, state = record(Bare(), START, None, 40, **options), build(START)
    found = record(kind(), state, None, 40, **options, latent=LATENT[name])
    recorder, cell = Recorder(lags=4, latent=list(LATENT[name])), kind()
    with recorder.attach(cell, CellSite("")):
        z = build(START)
        for step in range(40):
            z = cell(z, None, step)
    stream = STREAM[name]
    for trace in (found, recorder.trace()):
        assert trace.streams == (stream,)
        for field in ("norm", "update", "recurrence", "turning"):
            np.testing.assert_array_equal(getattr(trace, field)[stream], getattr(expected, field)["state"])
    np.testing.assert_array_equal(found.joint, expected.joint)
    assert classify(found)["joint"].counts() == {"converged": 3}
    assert repr(build(START)) == repr(state)


def test_without_names_every_floating_leaf_is_judged_and_hides_what_has_settled():
    kind, build = CELLS["ponder"]
    state = (START, zeros(), torch.zeros_like(START), zeros())
    assert record(kind(), state, None, 3).streams == ("0", "1", "2", "3")
    sums = Stationary(lambda s, x: (moved(s[0]), s[1] + s[0].square().sum(1)))
    verdicts = classify(record(sums, (START, zeros()), None, 60, lags=16))
    assert {name: set(it.counts()) for name, it in verdicts.items()} == {
        "0": {"converged"},
        "1": {"drift"},
        "joint": {"drift"},
    }
    with pytest.raises(ValueError, match=r"got mean of shape \(\).*latent=\('h',\)"):
        record(sums, {"h": START, "mean": zeros()[0]}, None, 3)


@pytest.mark.parametrize("name", CELLS)
def test_spectra_and_searches_are_of_the_named_leaves_alone(name):
    kind, build = CELLS[name]
    f, bare = StateMap(kind(), build(START), None, latent=LATENT[name]), StateMap(Bare(), START, None)
    assert f.point.shape == (3, 4) and torch.equal(f(f.point), bare(START))
    np.testing.assert_allclose(spectral_radius(f, f.point), spectral_radius(bare, START), rtol=1e-12)
    np.testing.assert_allclose(eigenvalues(f, f.point, 4), eigenvalues(bare, START, 4), atol=1e-12)
    np.testing.assert_allclose(*(lyapunov(it, START, 20, k=2).mean for it in (f, bare)), rtol=1e-9)
    np.testing.assert_allclose(*(find_fixed_points(it, START).state.numpy() for it in (f, bare)), atol=1e-9)
    torch.testing.assert_close(f.sample(1)(START[1:2]), bare(START)[1:2])
    assert len(f.sample(1).state(START[1:2])) == len(build(START))


def test_an_accumulator_in_a_spectrum_is_an_eigenvalue_of_one():
    kind, build = CELLS["ponder"]
    state = build(START)
    np.testing.assert_allclose(spectral_radius(StateMap(kind(), state, None), StateMap(kind(), state, None).point), 1)
    f = StateMap(kind(), state, None, latent="0".split())
    assert (spectral_radius(f, f.point) < 0.5).all()


def test_rounding_and_gaps_are_of_the_named_leaves_alone():
    kind, build = CELLS["ponder"]
    state = [leaf.float() for leaf in build(START)]
    expected = rounding_error(Bare(), START.float(), None)
    np.testing.assert_array_equal(rounding_error(kind(), tuple(state), None, latent=("0",)), expected)
    weight = nn.Linear(1, 1).double()

    def loss(module, estimator, rows):
        return estimator(Bare(), START[rows] * module.weight, None, 6).state.square().sum()

    (gap,) = gradient_gaps({"bptt": BPTT()}, loss, weight, kind(), build(START), None, 6, latent=("0",))
    (bare,) = gradient_gaps({"bptt": BPTT()}, loss, weight, Bare(), START, None, 6)
    np.testing.assert_array_equal(gap.residual, bare.residual)
    np.testing.assert_allclose(gap.radius, bare.radius, rtol=1e-12)


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, state, inputs, step):
        return moved(self.scale * state) + 0.01 * inputs


@pytest.mark.parametrize("save", ["sum", "all", 3, [2, 5]], ids=str)
@pytest.mark.parametrize("name", ["bptt", "forward mode", "forward gradient", "random truncation"])
def test_answers_that_an_estimator_carries_are_no_part_of_the_latent_state(name, save):
    cell, xs = Weighted(), torch.linspace(-1, 1, 6, dtype=torch.float64).view(6, 1, 1)
    made = {"bptt": BPTT(), "forward mode": ForwardMode(["scale"]), "forward gradient": ForwardGradient(seed=0)}
    made |= {"random truncation": RandomTruncation(4, seed=0)}
    recorder = Recorder(lags=2)
    # where a forward mode differentiates, the cell is called by a transform, and a recorder has nothing to read
    with recorder.attach(cell), torch.set_grad_enabled(made[name].outputs == "emitted"):
        made[name](cell, START, None, 6, xs=xs, readout=lambda z, *_: z.square().sum(1), save=save)
    expected = record(cell, START, None, 6, xs=xs, lags=2)
    assert recorder.trace().streams == ("state",) and expected.at == 5
    for field in ("norm", "update", "recurrence", "turning"):
        np.testing.assert_array_equal(getattr(recorder.trace(), field)["state"], getattr(expected, field)["state"])


def test_inputs_per_update_and_a_first_step_are_those_of_the_estimators():
    class Stepped(nn.Module):
        def forward(self, state, inputs, step):
            shared, x = inputs
            return torch.tanh(state / 2 + shared + x) + 0.1 * step

    xs, shared = torch.randn(7, 3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    z, norms = START, [START.norm(dim=1)]
    for step in range(7):
        z = torch.tanh(z / 2 + shared + xs[step]) + 0.1 * (10 + step)
        norms.append(z.norm(dim=1))
    trace = record(Stepped(), START, shared, 7, xs=xs, start=10, reevaluate=torch.float64)
    np.testing.assert_allclose(trace.norm["state"], torch.stack(norms), rtol=1e-12)
    assert trace.at == 6
    np.testing.assert_allclose(trace.joint, trace.update["state"][-1], rtol=1e-12)
    inside = Stationary(lambda z, x: torch.tanh(z / 2 + x[0] + x[1]))
    moved_batch = {"batch_dim": 1, "lags": 2}
    there = record(
        Stationary(lambda z, x: torch.tanh(z / 2 + x[0].mT + x[1].mT)), START.mT, shared, 7, xs=xs, **moved_batch
    )
    np.testing.assert_allclose(
        there.update["state"], record(inside, START, shared, 7, xs=xs).update["state"], rtol=1e-12
    )
    coupled = record(Damped(inside), START, shared, 7, xs=xs)
    assert coupled.num_steps == 7 and np.isfinite(coupled.joint).all()
    with pytest.raises(ValueError, match="first dimension must be the updates"):
        record(Stepped(), START, shared, 6, xs=xs)


@pytest.mark.parametrize(
    ("chosen", "error", "text"),
    [
        (("zz",), ValueError, r"latent=\('zz',\) names \['zz'\]: the leaves of state are \('h', 'n'\)"),
        ((), ValueError, "names no leaf"),
        ("h", TypeError, "latent='h' must be names of leaves"),
        ((0,), TypeError, r"latent=\(0,\) must be names of leaves"),
    ],
    ids=["unknown", "none", "word", "number"],
)
def test_names_that_are_none_are_refused(chosen, error, text):
    cell, state = Stationary(lambda z, x: z), {"h": START, "n": zeros()}
    for analyse in (
        lambda: record(cell, state, None, 3, latent=chosen),
        lambda: StateMap(cell, state, None, latent=chosen),
        lambda: rounding_error(cell, state, None, latent=chosen),
        lambda: Recorder(latent=chosen).push(**state),
    ):
        with pytest.raises(error, match=text):
            analyse()


def test_a_leaf_that_cannot_be_judged_is_refused_by_its_name():
    cell, state = Stationary(lambda z, x: z), {"h": START, "n": torch.arange(3)}
    with pytest.raises(TypeError, match="stream n of state must be a floating tensor, got torch.int64"):
        record(cell, state, None, 3, latent=("h", "n"))
