"""Flags, counters, token ids and absent parts in a state: carried along, and never part of what is judged."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from loopgrad.analysis import (
    CellSite,
    Recorder,
    StateMap,
    bias_and_variance,
    classify,
    eigenvalues,
    find_fixed_points,
    gradient_gaps,
    lyapunov,
    multistart,
    operator_norm,
    record,
    reference_gradients,
    rounding_error,
    spectral_radius,
)
from loopgrad.gradients import BPTT, Stationary

W = 0.4 * torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
START = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LIMITS = torch.tensor([2, 100, 5])


def moved(h):
    return torch.tanh(h @ W.to(h)) + 0.1


class Bare(nn.Module):
    """The reference: the same motion, told by `step` when a sample stops."""

    def forward(self, state, inputs, step):
        return torch.where((step < LIMITS)[:, None], moved(state), state)


class Halting(nn.Module):
    """A counter and flags, as tensors."""

    def forward(self, state, inputs, step):
        h = torch.where(state["halted"][:, None], state["h"], moved(state["h"]))
        steps = state["steps"] + (~state["halted"]).int()
        return {"h": h, "steps": steps, "halted": steps >= LIMITS}


class Numbers(nn.Module):
    """A counter that is an int, a flag that is a bool, and a part that is absent until the third update."""

    def forward(self, state, inputs, step):
        h, count, even, memory = state
        assert even == (count % 2 == 0)
        h = torch.where((count < LIMITS)[:, None], moved(h), h)
        return h, count + 1, not even, (None if count < 2 else torch.arange(3))


@dataclass
class Carry:
    tokens: torch.Tensor
    h: torch.Tensor
    mask: Any = None


class Tokens(nn.Module):
    """Token ids beside the latent state, counted up in place."""

    def forward(self, state, inputs, step):
        h = torch.where((state.tokens < LIMITS)[:, None], moved(state.h), state.h)
        state.tokens += 1
        return Carry(tokens=state.tokens, h=h, mask=state.mask)


CELLS = {
    "flags": (
        Halting,
        lambda h: {
            "h": h,
            "steps": torch.zeros(3, dtype=torch.int32),
            "halted": torch.zeros(3, dtype=torch.bool),
        },
        "h",
    ),
    "numbers": (Numbers, lambda h: (h, 0, True, None), "0"),
    "tokens": (Tokens, lambda h: Carry(torch.zeros(3, dtype=torch.int64), h), "h"),
}


def loop(cell, state, num_steps):
    for step in range(num_steps):
        state = cell(state, None, step)
    return state


@pytest.mark.parametrize("name", CELLS)
def test_a_trace_is_that_of_the_latent_state_alone(name):
    kind, build, stream = CELLS[name]
    expected, state = record(Bare(), START, None, 20, lags=4, reevaluate=torch.float64), build(START)
    found = record(kind(), state, None, 20, lags=4, reevaluate=torch.float64)
    recorder, cell = Recorder(lags=4), kind()
    with recorder.attach(cell, CellSite("")):
        loop(cell, build(START), 20)
    assert found.streams == recorder.trace().streams == (stream,)
    for trace in (found, recorder.trace()):
        np.testing.assert_array_equal(trace.update[stream], expected.update["state"])
        np.testing.assert_array_equal(trace.norm[stream], expected.norm["state"])
        np.testing.assert_array_equal(trace.recurrence[stream], expected.recurrence["state"])
    np.testing.assert_array_equal(found.joint, expected.joint)
    assert (classify(found)[stream].label == classify(expected)["state"].label).all()
    assert repr(build(START)) == repr(state)  # what was counted up in place was a copy


@pytest.mark.parametrize("name", CELLS)
def test_a_state_map_is_of_the_latent_state_with_the_rest_as_it_was_given(name):
    kind, build, _ = CELLS[name]
    f, bare = StateMap(kind(), build(START), None), StateMap(Bare(), START, None)
    assert torch.equal(f.point, START) and f.point.shape == (3, 4)
    for _ in range(2):  # nothing is counted on from call to call
        assert torch.equal(f(f.point), bare(START))
    np.testing.assert_allclose(spectral_radius(f, f.point), spectral_radius(bare, START), rtol=1e-12)
    np.testing.assert_allclose(operator_norm(f, f.point), operator_norm(bare, START), rtol=1e-12)
    np.testing.assert_allclose(eigenvalues(f, f.point, 4), eigenvalues(bare, START, 4), atol=1e-12)
    np.testing.assert_allclose(f.jacobians(START).numpy(), bare.jacobians(START).numpy(), atol=1e-14)
    exponents = [lyapunov(it, START, 40, k=2, transient=20).mean for it in (f, bare)]
    np.testing.assert_allclose(*exponents, rtol=1e-9)
    points = [find_fixed_points(it, START).state.numpy() for it in (f, bare)]
    np.testing.assert_allclose(*points, atol=1e-9)
    assert (multistart(f, torch.stack([START, -START]), 60).clusters == 1).all()
    np.testing.assert_allclose(rounding_error(kind(), build(START.float()), None), 0, atol=1e-6)
    for row in range(3):
        one = f.sample(row)
        torch.testing.assert_close(one(one.point), bare(START)[row : row + 1])  # a batch of one rounds otherwise


def test_what_is_carried_goes_on_within_a_cycle():
    class Schedule(nn.Module):
        period = 3

        def forward(self, state, inputs, step):
            factor = 2.0 if state["odd"] else 0.5
            return {"h": factor * state["h"], "count": state["count"] + 1, "odd": not state["odd"]}

    state = {"h": START, "count": 0, "odd": False}
    f = StateMap(Schedule(), state, None)
    torch.testing.assert_close(f(START), 0.5 * 2 * 0.5 * START)
    np.testing.assert_allclose(spectral_radius(f, START), 0.5)
    flags = StateMap(Schedule(), {**state, "odd": True}, None)
    np.testing.assert_allclose(spectral_radius(flags, START), 2.0)


def test_a_sample_above_96_features_takes_its_own_flags():
    scale = torch.tensor([0.5, 0.25])

    class Wide(nn.Module):
        def forward(self, state, inputs, step):
            h, level, absent = state
            return h * scale.to(h)[level][:, None] + h.roll(1, 1) / 8, level, absent

    start = torch.zeros(3, 100, dtype=torch.float64)
    f = StateMap(Wide(), (start, torch.tensor([0, 1, 0]), None), None)
    np.testing.assert_allclose(spectral_radius(f, f.point), [0.625, 0.375, 0.625], rtol=1e-6)


@pytest.mark.parametrize("name", CELLS)
def test_gradients_and_their_gaps_are_those_of_the_latent_state(name):
    kind, build, _ = CELLS[name]

    class Weighted(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.scale = inner, nn.Parameter(torch.tensor(0.9, dtype=torch.float64))

        def forward(self, state, inputs, step):
            return self.inner(state, inputs, step)

    cell = kind()
    module = Weighted(cell)

    def loss_of(build):
        def loss(own, estimator=None, rows=None):
            state = loop(own.inner, build(own.scale * START), 6)
            leaves = [leaf for leaf in vars(state).values()] if isinstance(state, Carry) else state
            leaves = leaves.values() if isinstance(leaves, dict) else leaves
            leaves = [leaves] if isinstance(leaves, torch.Tensor) else leaves
            h = next(leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point())
            return h.square().sum()

        return loss

    expected = reference_gradients(loss_of(lambda h: h), Weighted(Bare()))["scale"]
    assert torch.equal(reference_gradients(loss_of(build), module)["scale"], expected)
    spread = bias_and_variance(BPTT(), loss_of(build), module, draws=4)
    assert spread.variance == spread.bias_squared == 0.0
    (gap,) = gradient_gaps({"bptt": BPTT()}, loss_of(build), module, cell, build(START), None, 6)
    (bare,) = gradient_gaps({"bptt": BPTT()}, loss_of(lambda h: h), Weighted(Bare()), Bare(), START, None, 6)
    assert gap.relative_error == 0.0
    np.testing.assert_array_equal(gap.residual, bare.residual)
    np.testing.assert_allclose(gap.radius, bare.radius, rtol=1e-12)


def test_a_part_that_becomes_floating_is_refused_by_its_name():
    class Late(nn.Module):
        def forward(self, state, inputs, step):
            return {"h": state["h"] / 2, "memory": state["h"]}

    start = {"h": START, "memory": None}
    for analyse in (lambda: record(Late(), start, None, 3), lambda: StateMap(Late(), start, None)(START)):
        with pytest.raises(ValueError, match=r"\('h',\): got \('h', 'memory'\).*such as zeros"):
            analyse()


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"h": START, "rate": 0.5}, "stream rate of state must be a floating tensor, got float"),
        ({"h": START, "name": "a"}, "stream name of state must be a floating tensor, got str"),
        ({"steps": torch.zeros(3, dtype=torch.int64)}, "steps of state must be a floating tensor, got torch.int64"),
        (None, "must be a floating tensor, got NoneType"),
    ],
    ids=["float", "str", "counter alone", "nothing"],
)
def test_what_is_neither_judged_nor_carried_is_refused(state, text):
    cell = Stationary(lambda z, x: z)
    for analyse in (lambda: record(cell, state, None, 3), lambda: StateMap(cell, state, None)):
        with pytest.raises(TypeError, match=text):
            analyse()
