"""analysis.recorder against `record`, and against closed forms where rows of a batch take new samples."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from loopgrad.analysis import classify, record
from loopgrad.analysis.recorder import Recorder
from loopgrad.analysis.sites import ModuleSite
from loopgrad.gradients import BPTT, CheckpointedBPTT, Stationary, TruncatedBPTT
from loopgrad.gradients.live_bytes import PeakBytes
from loopgrad.models import HRM, TRM


def check_equal(one, other):
    """Every field of two traces, to the last bit."""
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        pairs = {name: (a[name], b[name]) for name in {**a, **b}} if isinstance(a, dict) else {"": (a, b)}
        for name, (x, y) in pairs.items():
            np.testing.assert_array_equal(x, y, err_msg=f"{field.name} {name}")


MODELS = {
    "attention": lambda: TRM(11, 9, hidden_size=16, num_heads=2, L_cycles=2),
    "mlp": lambda: TRM(11, 9, hidden_size=16, num_heads=2, L_cycles=2, mixer="mlp"),
    "one stream": lambda: TRM(11, 9, hidden_size=16, num_heads=2, L_cycles=2, streams=1),
    "hrm": lambda: HRM(11, 9, hidden_size=16, num_heads=2, H_layers=1, L_layers=1),
}


@pytest.mark.parametrize(
    "estimator", [TruncatedBPTT(num_cycles=1), CheckpointedBPTT()], ids=["truncated", "recomputed"]
)
@pytest.mark.parametrize("name", MODELS)
def test_attached_over_segments_it_records_what_record_does(name, estimator):
    model, tokens, state = MODELS[name](), torch.arange(27).view(3, 9) % 11, None
    recorder, period = Recorder(lags=3), model.cell.period
    with recorder.attach(model):
        for _ in range(3):
            output = model(state, tokens, None, estimator)
            output.logits.sum().backward()  # which computes updates again: they are no new ones
            state = {key: z.detach() for key, z in output.state.items()}
    num_steps = 3 * model.num_steps
    expected = record(
        model.cell, model.initial_state(3), model.encode(tokens), num_steps, at=num_steps - period, lags=3
    )
    check_equal(recorder.trace(), expected)


def test_pushed_states_give_what_record_gives():
    class Streams(nn.Module):
        period = 3

        def forward(self, state, inputs, step):
            low, high = state["low"], state["high"]
            return {"low": 0.5 * low + high, "high": high} if step % 3 < 2 else {"low": low, "high": high / 4 + low}

    state = {"low": torch.randn(2, 5), "high": torch.randn(2, 5)}
    expected = record(Streams(), state, None, 8, at=5, lags=2)
    recorder = Recorder(period=3, lags=2)
    recorder.push(**state)
    for step in range(8):
        state = Streams()(state, None, step)
        # the one not touched is left out, or is the very tensor of before
        recorder.push(**(state if step % 2 else {"low": state["low"]} if step % 3 < 2 else {"high": state["high"]}))
    check_equal(recorder.trace(), expected)


class Halting(nn.Module):
    """z <- 0.9 z, two cycles of two updates in a call; rows that are told to start again at their own initial state."""

    def __init__(self):
        super().__init__()
        self.cell = Stationary(lambda z, x: 0.9 * z)
        self.cell.period = 2

    def forward(self, z, again, begin):
        z = torch.where(again[:, None], begin, z)
        return BPTT()(self.cell, z, None, 4).state.detach()


# segments before which a row takes a new sample
RESETS = {0: [0, 10], 1: [0], 2: [0, 3, 10], 3: [0, 10]}


def halting_recorder(dtype=torch.float64):
    model, z, recorder = Halting(), torch.full((4, 3), 7.0, dtype=dtype), Recorder(lags=4)
    with recorder.attach(model):
        for segment in range(20):
            again = torch.tensor([segment in RESETS[row] for row in range(4)])
            z = model(z, again, torch.full((4, 3), float(segment + 1), dtype=dtype))
    return recorder


def test_nothing_crosses_where_a_row_takes_a_new_sample():
    found = {}
    for trace in halting_recorder().traces():
        for i, key in enumerate(zip(trace.row.tolist(), trace.begin.tolist(), strict=True)):
            found[key] = trace, i
    assert {key: trace.num_steps for key, (trace, _) in found.items()} == {
        (0, 0): 40, (0, 40): 40, (1, 0): 80, (2, 0): 12, (2, 12): 28, (2, 40): 40, (3, 0): 40, (3, 40): 40,
    }  # fmt: skip
    for (_, begin), (trace, i) in found.items():
        norms = (begin / 4 + 1) * 3**0.5 * 0.9 ** np.arange(trace.num_steps + 1)
        np.testing.assert_allclose(trace.norm["state"][:, i], norms, rtol=1e-12)
        np.testing.assert_allclose(trace.update["state"][:, i], 0.1 * norms[:-1], rtol=1e-12)
        np.testing.assert_allclose(trace.cycle["state"][1:, i], (1 - 0.81) * norms[:-2], rtol=1e-12)
        np.testing.assert_allclose(trace.joint[i], (1 - 0.81) * norms[-3], rtol=1e-12)
        assert np.isnan(trace.cycle["state"][0, i]) and np.isnan(trace.turning["state"][0, i])
        for lag in range(1, 5):
            apart, ends = trace.recurrence["state"][lag - 1, :, i], norms[::2]
            np.testing.assert_allclose(apart[lag - 1 :], (0.81**-lag - 1) * ends[lag:], rtol=1e-11)
            assert np.isnan(apart[: lag - 1]).all()


def test_verdicts_of_episodes_are_those_of_their_own_runs():
    recorder = halting_recorder()
    by_length = {trace.num_steps: classify(trace)["state"] for trace in recorder.traces()}
    assert list(by_length) == [80, 40, 28, 12]
    np.testing.assert_allclose(by_length[40].rate, 0.81, rtol=1e-9)
    alone = record(recorder_cell(), torch.ones(1, 3, dtype=torch.float64), None, 40, lags=4)
    assert set(by_length[40].label) == set(classify(alone)["state"].label) == {"converging"}
    with pytest.raises(ValueError, match="1 of 80 updates, 5 of 40 updates, .*use traces"):
        recorder.trace()


def recorder_cell():
    return Halting().cell


def test_a_row_that_has_become_nan_goes_on():
    recorder = Recorder()
    recorder.push(z=torch.tensor([[1.0], [1.0]]))
    recorder.push(z=torch.tensor([[float("nan")], [0.5]]))
    recorder.start(z=torch.tensor([[float("nan")], [0.5]]))
    recorder.push(z=torch.tensor([[float("nan")], [0.25]]))
    assert recorder.trace().update["z"][:, 1].tolist() == [0.5, 0.25]


def test_a_segment_that_stops_within_a_cycle_ends_the_episodes():
    recorder = Recorder(period=2)
    for z in (1.0, 2.0, 4.0, 8.0):
        recorder.push(z=torch.full((1, 1), z))
    recorder.start(z=torch.full((1, 1), 8.0))
    recorder.push(z=torch.full((1, 1), 9.0))
    long, short = recorder.traces()
    assert (long.num_steps, short.num_steps, short.begin.tolist()) == (3, 1, [3])
    assert np.isnan(short.map["z"]).all() and long.map["z"].tolist() == [6.0]


def test_bfloat16_states_are_subtracted_in_float32_under_autocast_and_inference_mode():
    recorder = Recorder(lags=2)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for i in range(4):
            recorder.push(z=torch.full((1, 1000), 256.0 + 2 * i, dtype=torch.bfloat16))
    recorder.push(z=torch.full((1, 1000), 264.0, dtype=torch.bfloat16, requires_grad=True))
    trace = recorder.trace()
    np.testing.assert_allclose(trace.update["z"][:, 0], 2 * 1000**0.5, rtol=1e-6)
    np.testing.assert_allclose(trace.norm["z"][:, 0], (256 + 2 * np.arange(5)) * 1000**0.5, rtol=1e-6)
    assert trace.dtype == {"z": "bfloat16"}


def run_of(recorder, num_steps):
    """Push states of 40 kB, each freed by the loop at once."""
    for i in range(num_steps + 1):
        recorder.push(z=torch.full((1, 10_000), float(i)))
    return recorder


@pytest.mark.parametrize("lags", [0, 3])
def test_what_is_held_does_not_grow_with_the_updates_but_for_blocks_of_scalars(lags):
    def held(num_steps):
        with PeakBytes() as counter:
            recorder = run_of(Recorder(period=4, lags=lags), num_steps)
            live = counter.live
        return live, recorder

    (short, _), (long, _) = held(16), held(80)
    scalars = 80 * (3 + (lags + 1) / 4)  # update, norm, cycle; lags and turning at the ends of cycles
    assert 0 < long - short <= 4 * (scalars + 64)


def test_an_update_costs_a_fixed_number_of_operators_and_no_synchronisation():
    class Calls(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(func.__name__)
            return func(*args, **(kwargs or {}))

    recorder, counts = run_of(Recorder(period=4), 5), []
    for _ in range(3):
        z = torch.ones(1, 10_000)
        with Calls() as calls:
            recorder.push(z=z)
        counts.append(sorted(calls.names))
    arithmetic = [name for name in counts[0] if name.startswith(("sub", "linalg_vector_norm"))]
    assert counts[0] == counts[1] == counts[2] and len(arithmetic) == 5  # two differences and three norms
    assert not any(name.startswith(("_local_scalar_dense", "_to_copy", "is_nonzero", "item")) for name in counts[0])


def test_the_hooks_go_also_when_the_model_raises():
    def fail(z, x):
        raise ArithmeticError("planted")

    cell = Stationary(fail)
    with pytest.raises(ArithmeticError, match="planted"), Recorder().attach(cell):
        BPTT()(cell, torch.ones(1, 1), None, 1)
    assert not cell._forward_hooks and not cell._forward_pre_hooks


def test_a_state_that_is_changed_in_place_is_refused():
    z, recorder = torch.ones(2, 3), Recorder()
    recorder.push(z=z)
    with pytest.raises(ValueError, match="changed in place"):
        recorder.push(z=z.mul_(2))


@pytest.mark.parametrize(
    ("streams", "error", "text"),
    [
        ({"z": torch.ones(3, 1)}, ValueError, "one Recorder for each batch size"),
        ({"y": torch.ones(2, 1)}, ValueError, "'y' is not one of"),
        ({"z": torch.ones(2, 1).long()}, TypeError, "must be a floating tensor, got torch.int64"),
        ({"z": [1.0]}, TypeError, "must be a floating tensor, got list"),
    ],
)
def test_what_cannot_be_pushed_is_refused(streams, error, text):
    recorder = Recorder()
    recorder.push(z=torch.ones(2, 1))
    with pytest.raises(error, match=text):
        recorder.push(**streams)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="period must be"):
        Recorder(period=0)
    with pytest.raises(ValueError, match="lags must be"):
        Recorder(lags=-1)
    with pytest.raises(TypeError, match="upcast must be"):
        Recorder(upcast=torch.bfloat16)
    with pytest.raises(ValueError, match="nothing was recorded"):
        Recorder().trace()
    with pytest.raises(ValueError, match="no tensors"):
        Recorder().push()
    with pytest.raises(ValueError, match="other than 'joint'"):
        Recorder().push(joint=torch.ones(1, 1))
    with pytest.raises(TypeError, match="push the states of a loop"), Recorder().attach(lambda z: z):  # type: ignore[arg-type]
        pass
    with pytest.raises(ValueError, match="period is 2, the model's is 3"):
        with Recorder(period=2).attach(nn.Linear(1, 1), ModuleSite({"": "z"}, period=3)):
            pass


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recording_on_a_gpu_never_waits_for_it():
    recorder, z = Recorder(period=2, lags=3), torch.ones(4, 10, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(9):
            recorder.push(z=z)
            z = 0.5 * z
        recorder.start(z=torch.full_like(z, 0.25))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_allclose(recorder.trace().update["z"][:, 0], 10**0.5 * 0.5 ** np.arange(1, 9), rtol=1e-6)
