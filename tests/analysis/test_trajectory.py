"""trajectory.record against closed forms of linear maps and a hand-written loop."""

import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from loopgrad.analysis import record
from loopgrad.gradients import Stationary


def start(batch=3, width=5, dtype=torch.float64, seed=0):
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def norms(tensor):
    return tensor.double().flatten(1).norm(dim=1).numpy()


def test_residuals_of_a_linear_map_are_geometric():
    a, z0, num_steps = 0.7, start(), 12
    trace = record(Stationary(lambda z, x: a * z), z0, None, num_steps)
    powers = a ** np.arange(num_steps + 1)[:, None] * norms(z0)
    np.testing.assert_allclose(trace.norm["state"], powers, rtol=1e-13)
    np.testing.assert_allclose(trace.update["state"], (1 - a) * powers[:-1], rtol=1e-13)
    np.testing.assert_allclose(trace.cycle["state"], trace.update["state"], rtol=0)
    np.testing.assert_allclose(trace.joint, (1 - a) * powers[-1], rtol=1e-13)
    scale = np.quantile(powers, 0.9, axis=0)
    np.testing.assert_allclose(trace.relative["state"], (1 - a) * powers[:-1] / scale, rtol=1e-13)
    np.testing.assert_allclose(trace.joint_relative, (1 - a) * powers[-1] / scale, rtol=1e-13)
    assert trace.update["state"].dtype == np.float64 and trace.update["state"].shape == (num_steps, 3)


def test_the_relative_residual_vanishes_at_a_fixed_point_of_zero():
    # residual over the current norm would stay at (1 - a) / a for ever
    trace = record(Stationary(lambda z, x: 0.5 * z), start(), None, 60)
    assert (trace.relative["state"][-1] < 1e-15).all()


class Streams(nn.Module):
    """z_L <- a z_L + z_H twice, then z_H <- b z_H + z_L; the stream not updated is handed on."""

    period = 3

    def __init__(self, a=0.5, b=0.25):
        super().__init__()
        self.a, self.b = a, b
        self.seen = []

    def forward(self, state, inputs, step):
        self.seen.append(step)
        if step % 3 < 2:
            return {**state, "z_L": self.a * state["z_L"] + state["z_H"]}
        return {**state, "z_H": self.b * state["z_H"] + state["z_L"]}


def unrolled(cell, state, num_steps):
    states = [state]
    for step in range(num_steps):
        states.append(cell(states[-1], None, step))
    return states


def test_streams_are_separate_and_an_untouched_one_is_nan():
    state = {"z_L": start(seed=1), "z_H": start(seed=2)}
    trace = record(Streams(), state, None, 6)
    states = unrolled(Streams(), state, 9)
    assert sorted(trace.streams) == ["z_H", "z_L"]
    for name in ("z_L", "z_H"):
        for t in range(6):
            moved = norms(states[t + 1][name] - states[t][name])
            expected = np.full(3, np.nan) if (name == "z_H") == (t % 3 < 2) else moved
            np.testing.assert_allclose(trace.update[name][t], expected, rtol=1e-13)
            apart = norms(states[t + 1][name] - states[t - 2][name]) if t >= 2 else np.full(3, np.nan)
            np.testing.assert_allclose(trace.cycle[name][t], apart, rtol=1e-12)
        np.testing.assert_allclose(trace.map[name], norms(states[9][name] - states[6][name]), rtol=1e-12)
    np.testing.assert_allclose(trace.joint, np.sqrt(trace.map["z_L"] ** 2 + trace.map["z_H"] ** 2), rtol=1e-13)


@pytest.mark.parametrize("at", [0, 2, 3, 5, 6])
def test_the_joint_residual_is_taken_where_asked(at):
    state = {"z_L": start(seed=1), "z_H": start(seed=2)}
    states = unrolled(Streams(), state, 9)
    cell = Streams()
    trace = record(cell, state, None, 6, at=at)
    squares = sum(norms(states[at + 3][name] - states[at][name]) ** 2 for name in state)
    np.testing.assert_allclose(trace.joint, np.sqrt(squares), rtol=1e-12)
    assert trace.at == at and trace.period == 3
    assert cell.seen == list(range(max(6, at + 3)))  # numbered on, and no update is made twice


def test_a_state_of_the_same_values_in_a_new_tensor_was_updated_by_zero():
    trace = record(Stationary(lambda z, x: z.clone()), start(), None, 2)
    assert (trace.update["state"] == 0).all()


def test_a_stream_that_stays_at_zero_has_a_relative_residual_of_zero():
    trace = record(Stationary(lambda z, x: z * 2), torch.zeros(2, 3), None, 2)
    assert (trace.relative["state"] == 0).all() and (trace.joint_relative == 0).all()


def test_the_scale_of_a_stream_that_leaves_zero_late_does_not_vanish():
    class Late(nn.Module):
        def forward(self, state, inputs, step):
            return state + (step == 29)

    trace = record(Late(), torch.zeros(1, 1), None, 30)
    assert trace.scale["state"].item() == 1.0 and trace.relative["state"][-1].item() == 1.0


@dataclass
class Pair:
    low: torch.Tensor
    high: torch.Tensor


class Named(NamedTuple):
    low: torch.Tensor
    high: torch.Tensor


@pytest.mark.parametrize(
    ("state", "names"),
    [
        (torch.ones(2, 1), ("state",)),
        ((torch.ones(2, 1), torch.ones(2)), ("0", "1")),
        ({"z": (torch.ones(2, 1), {"y": torch.ones(2)})}, ("z.0", "z.1.y")),
        (Pair(torch.ones(2, 1), torch.ones(2, 3, 4)), ("low", "high")),
        ({"pair": Pair(torch.ones(2, 1), torch.ones(2))}, ("pair.low", "pair.high")),
        (Named(torch.ones(2, 1), torch.ones(2)), ("low", "high")),
        ({3: torch.ones(2)}, ("3",)),
    ],
    ids=str,
)
def test_names_of_streams(state, names):
    from loopgrad.gradients import tree

    trace = record(Stationary(lambda z, x: tree.map_tensors(lambda t: t / 2, z)), state, None, 2)
    assert trace.streams == names
    for name, leaf in zip(names, tree.tensors(state), strict=True):
        np.testing.assert_allclose(trace.update[name][0], norms(leaf.reshape(2, -1)) / 2)


def test_bfloat16_residual_is_zero_far_from_the_fixed_point_and_float64_shows_it():
    # z <- .99 (z - 1) + 1 from 4 stops moving in bfloat16 at 2.156; the fixed point is 1
    cell = Stationary(lambda z, x: 0.99 * (z - 1) + 1)
    z0 = torch.full((1, 1), 4.0, dtype=torch.bfloat16)
    native = record(cell, z0, None, 200)
    assert native.joint.item() == 0.0 and native.update["state"][-1].item() == 0.0
    z_T = native.norm["state"][-1].item()
    assert z_T == pytest.approx(2.156, abs=1e-3)
    wide = record(cell, z0, None, 200, reevaluate=torch.float64)
    assert wide.joint.item() == pytest.approx(0.01 * (z_T - 1), rel=1e-12)
    assert wide.joint.item() / z_T == pytest.approx(5.4e-3, abs=5e-5)  # relative, as DEQs have it
    assert (native.map_dtype, wide.map_dtype) == ({"state": "bfloat16"}, {"state": "float64"})
    assert wide.dtype == {"state": "bfloat16"}


def test_differences_of_bfloat16_states_are_taken_in_float32():
    # 256 -> 257 cannot be told in bfloat16, 256 -> 258 can; the norm over 1000 entries needs float32 as well
    z0 = torch.full((1, 1000), 256.0, dtype=torch.bfloat16)
    trace = record(Stationary(lambda z, x: z + 2), z0, None, 1)
    assert trace.update["state"].item() == pytest.approx(2 * np.sqrt(1000), rel=1e-6)
    assert trace.norm["state"][0].item() == pytest.approx(256 * np.sqrt(1000), rel=1e-6)


def test_reevaluation_starts_where_asked_and_follows_the_streams():
    torch.manual_seed(0)
    linear = nn.Linear(4, 4)
    cell = Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear)
    z0, x = start(2, 4, torch.float32), start(2, 4, torch.float32, seed=5)
    trace = record(cell, z0, x, 6, at=3, reevaluate=torch.float64)
    with torch.no_grad():
        z = z0
        for _ in range(3):
            z = torch.tanh(linear(z) + x)
        w, b = linear.weight.double(), linear.bias.double()
        expected = torch.tanh(z.double() @ w.T + b + x.double()) - z.double()
    np.testing.assert_allclose(trace.joint, norms(expected), rtol=1e-12)
    assert linear.weight.dtype == torch.float32


def test_reevaluation_numbers_its_steps_on():
    class ByStep(nn.Module):
        period = 2

        def forward(self, state, inputs, step):
            return state + inputs[step]

    inputs = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    trace = record(ByStep(), torch.zeros(1, 1), inputs, 3, reevaluate=torch.float64)
    assert trace.joint.item() == 8.0 + 16.0


def test_a_cell_that_casts_by_itself_cannot_be_reevaluated():
    cell = Stationary(lambda z, x: (z / 3).to(torch.float32))
    with pytest.raises(TypeError, match="computes in a dtype of its own"):
        record(cell, torch.ones(1, 1), None, 2, reevaluate=torch.float64)


def test_the_cell_runs_as_it_does_in_training_and_nothing_is_left_behind():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    cell = Stationary(lambda z, x: layer(z), parameters=layer)
    z0 = torch.randn(2, 3, 8)
    trace = record(cell, z0, None, 3)
    z, moved = z0, []
    for _ in range(3):
        new = layer(z)  # with autograd: under no_grad this layer takes another kernel
        moved.append((new - z).flatten(1).norm(dim=1))
        z = new
    assert np.array_equal(trace.update["state"], torch.stack(moved).detach().double().numpy())
    assert not layer.training and all(p.grad is None for p in layer.parameters())


def test_dropout_stays_on_in_train_mode_and_the_generator_is_put_back():
    dropout = nn.Dropout(0.5)
    cell = Stationary(lambda z, x: dropout(z), parameters=dropout)
    torch.manual_seed(4)
    before = torch.get_rng_state()
    trace = record(cell, torch.ones(1, 64), None, 1)
    assert torch.equal(before, torch.get_rng_state()) and dropout.training
    torch.testing.assert_close(
        torch.from_numpy(trace.update["state"][0]).float(), (dropout(torch.ones(1, 64)) - 1).norm(dim=1)
    )


def test_recording_holds_a_cycle_of_states_not_the_rollout():
    from loopgrad.analysis.counters import PeakBytes

    weight = nn.Parameter(torch.ones(()))
    cell = Stationary(lambda z, x: torch.tanh(weight * z), parameters=[weight])

    def peak(num_steps):
        with PeakBytes() as counter:
            record(cell, torch.ones(1, 10_000), None, num_steps)
        return counter.peak

    assert peak(64) - peak(8) < 40_000  # less than one state: scalars only


def test_quantiles_are_of_the_last_update_that_touched_the_stream():
    state = {"z_L": start(50, seed=1), "z_H": start(50, seed=2)}
    trace = record(Streams(), state, None, 5)  # L L H L L
    found = trace.quantiles((0.05, 0.5, 0.95))
    assert found["z_H"]["update"] == pytest.approx(np.quantile(trace.update["z_H"][2], [0.05, 0.5, 0.95]))
    assert found["z_L"]["update_relative"] == pytest.approx(np.quantile(trace.relative["z_L"][4], [0.05, 0.5, 0.95]))
    assert found["z_L"]["map"] == pytest.approx(np.quantile(trace.map["z_L"], [0.05, 0.5, 0.95]))
    assert found["joint"]["map_relative"] == pytest.approx(np.quantile(trace.joint_relative, [0.05, 0.5, 0.95]))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_quantiles_say_none_where_a_state_diverged_or_never_moved():
    grows = record(Stationary(lambda z, x: z * 1e30), torch.ones(2, 1), None, 6).quantiles()
    assert grows["joint"]["map"] == grows["state"]["update"] == [None, None, None]
    still = record(Stationary(lambda z, x: z), torch.ones(2, 1), None, 4).quantiles()
    assert still["state"]["update"] == [None, None, None] and still["state"]["map"] == [0.0, 0.0, 0.0]
    one_of_four = torch.tensor([[1.0], [1.0], [1.0], [1e38]])
    some = record(Stationary(lambda z, x: z * 100), one_of_four, None, 2).quantiles((0.25, 1.0))
    assert some["state"]["update"][0] == pytest.approx(9900) and some["state"]["update"][1] is None


def test_no_update_at_all():
    trace = record(Stationary(lambda z, x: z / 2), torch.ones(2, 1), None, 0)
    assert trace.update["state"].shape == (0, 2) and trace.joint.tolist() == [0.5, 0.5]
    assert trace.quantiles()["state"]["update"] == [None, None, None]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"cell": lambda z, x, step: z}, TypeError, "wrap a plain map"),
        ({"num_steps": -1}, ValueError, "num_steps must be"),
        ({"at": 5}, ValueError, "at must be a number of updates between 0 and num_steps=4"),
        ({"upcast": torch.bfloat16}, TypeError, "upcast must be"),
        ({"state": torch.ones(2, 1).long()}, TypeError, "must be a floating tensor"),
        ({"state": torch.tensor(1.0)}, ValueError, "one batch size"),
        ({"state": (torch.ones(2), torch.ones(3))}, ValueError, "one batch size"),
        ({"state": {"joint": torch.ones(2)}}, ValueError, "other than 'joint'"),
        ({"state": {}}, ValueError, "no tensors"),
        ({"cell": Stationary(lambda z, x: z.mul_(2))}, ValueError, "in place"),
        ({"cell": Stationary(lambda z, x: (z, z))}, ValueError, "structure"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_recorded_is_refused(change, error, text):
    arguments = {"cell": Stationary(lambda z, x: z), "state": torch.ones(2, 1), "inputs": None, "num_steps": 4}
    with pytest.raises(error, match=text):
        record(**{**arguments, **change})
