"""Verdicts per position: positions whose motion is known in closed form, each as if it were a batch of its own."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from loopgrad.analysis import Recorder, Trace, classify, record
from loopgrad.gradients import BPTT, Stationary
from loopgrad.gradients.live_bytes import PeakBytes
from loopgrad.models import Damped


def check_equal(one, other):
    """Every field of two traces, to the last bit."""
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        pairs = {name: (a[name], b[name]) for name in {**a, **b}} if isinstance(a, dict) else {"": (a, b)}
        for name, (x, y) in pairs.items():
            np.testing.assert_array_equal(x, y, err_msg=f"{field.name} {name}")


KINDS = ("converged", "cycle", "cycle", "diverging", "drift")
PERIODS = (0, 2, 3, 0, 0)
# which motion each position of a sample makes
PLACES = torch.tensor([[0, 1, 2, 3, 4], [0, 0, 0, 0, 0], [4, 0, 2, 2, 1]])
START = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def turned(z, angle, radius=1.0):
    """Rotate the pairs of features (0, 1) and (2, 3)."""
    x, y = z[..., ::2], z[..., 1::2]
    c, s = radius * math.cos(angle), radius * math.sin(angle)
    return torch.stack([c * x - s * y, s * x + c * y], dim=-1).flatten(-2)


def moved(z, places):
    """Halve, turn by a half and by a third, grow, slide."""
    each = [z / 2, turned(z, math.pi), turned(z, 2 * math.pi / 3), 1.1 * z, z + 1]
    return sum(torch.where((places == i)[..., None], it, torch.zeros_like(it)) for i, it in enumerate(each))


class Tokens(nn.Module):
    def forward(self, state, inputs, step):
        return moved(state, inputs)


def expected(places=PLACES):
    return np.array(KINDS)[places.numpy()], np.array(PERIODS)[places.numpy()]


def test_every_position_has_the_verdict_that_it_was_made_for():
    trace = record(Tokens(), START, PLACES, 200, lags=16, per="position", reevaluate=torch.float64)
    labels, periods = expected()
    for verdicts in classify(trace).values():
        assert verdicts.label.reshape(3, 5).tolist() == labels.tolist()
        assert verdicts.period.reshape(3, 5).tolist() == periods.tolist()
        assert verdicts.row.tolist() == [0] * 5 + [1] * 5 + [2] * 5 and verdicts.position.tolist() == [*range(5)] * 3
        found = verdicts.by_position()
        assert found.label.tolist() == labels.tolist() and found.row.tolist() == [0, 1, 2]
        assert found.share == {"converged": 7 / 15, "cycle": 5 / 15, "diverging": 1 / 15, "drift": 2 / 15}
        assert found.commonest.tolist() == ["cycle", "converged", "cycle"] and found.disagree.tolist() == [1, 0, 1]
        assert found.odd.tolist() == [[1, 0, 0, 1, 1], [0] * 5, [1, 1, 0, 0, 0]]
        text = repr(found)
        assert ".cc!d" in text and "....." in text and "2 of them mixed" in text and len(text.splitlines()) <= 12
    assert "15 positions" in repr(trace) and "15 positions" in repr(classify(trace)["state"])


def test_a_position_is_measured_as_if_it_were_a_batch_of_its_own():
    """Every number of a trace per position, beside runs of single positions."""
    options = {"lags": 5, "reevaluate": torch.float64}
    whole = record(Tokens(), START, PLACES, 12, per="position", **options)
    rows = record(Tokens(), START.view(15, 1, 4), PLACES.view(15, 1), 12, **options)
    assert whole.position.tolist() == [*range(5)] * 3 and rows.position is None
    named = {"row": rows.row // 5, "position": rows.row % 5}
    check_equal(whole, dataclasses.replace(rows, **named))


def test_the_verdict_of_a_whole_sample_hides_those_of_its_positions():
    found = classify(record(Tokens(), START, PLACES, 200, lags=16))["state"]
    assert found.label.tolist() == ["diverging", "converged", "orbit"] and found.row is found.position is None
    with pytest.raises(ValueError, match=r"whole samples.*per='position'"):
        found.by_position()


def test_norms_of_a_sample_are_those_of_its_positions_together():
    sample, each = (record(Tokens(), START, PLACES, 9, lags=3, per=per) for per in ("sample", "position"))
    for name in ("norm", "update", "cycle"):
        one, many = getattr(sample, name)["state"], getattr(each, name)["state"]
        np.testing.assert_allclose(one, np.sqrt(np.square(many).reshape(*one.shape, 5).sum(axis=-1)), rtol=1e-12)
    turning = each.turning["state"].reshape(-1, 3, 5).sum(axis=-1)
    np.testing.assert_allclose(sample.turning["state"], turning, rtol=1e-12)


class Elsewhere(nn.Module):
    """The same with the state (positions, features, batch), and features on a grid of positions."""

    def __init__(self, dims):
        super().__init__()
        self.dims = dims

    def forward(self, state, inputs, step):
        return moved(state.movedim(self.dims, (0, 1)), inputs).movedim((0, 1), self.dims)


@pytest.mark.parametrize("dims", [(2, 0), (0, 2), (1, 2), (1, 0)], ids=str)
def test_positions_may_be_any_dimension(dims):
    batch, position = dims
    plain = record(Tokens(), START, PLACES, 20, lags=4, per="position")
    state = START.movedim((0, 1), dims).contiguous()
    where = {"batch_dim": batch, "per": "position"}
    for given in (position, position - 3, {"state": position}):
        check_equal(record(Elsewhere(dims), state, PLACES, 20, lags=4, **where, position_dim=given), plain)
    recorder = Recorder(lags=4, **where, position_dim=position)
    with recorder.attach(cell := Elsewhere(dims)):
        BPTT()(cell, state, PLACES, 20, batch_dim=batch)
    np.testing.assert_array_equal(recorder.trace().recurrence["state"], plain.recurrence["state"])


def test_positions_may_be_rows_and_columns():
    images = START[:, :4].transpose(1, 2).reshape(3, 4, 2, 2)  # (batch, channels, height, width)
    cell = Stationary(lambda z, p: moved(z.flatten(2).mT, p).mT.reshape(z.shape))
    found = record(cell, images, PLACES[:, :4], 200, lags=16, per="position", position_dim=(2, 3))
    assert classify(found)["state"].by_position().label.tolist() == expected(PLACES[:, :4])[0].tolist()


def test_a_recorder_has_verdicts_per_position_and_its_episodes_are_those_of_samples():
    """Row 1 takes a new sample; a position in which it has the old values begins an episode with the others."""
    recorder, cell = Recorder(lags=16, per="position"), Tokens()
    with recorder.attach(cell):
        last = BPTT()(cell, START, PLACES, 60).state
        last = last.clone()
        last[1, 1:] = START[1, 1:]
        BPTT()(cell, last, PLACES, 40)
    assert "3 samples of 5 positions" in repr(recorder)
    long, first, second = sorted(recorder.traces(), key=lambda it: (-it.num_steps, it.begin[0]))
    assert long.num_steps == 100 and long.row.tolist() == [0] * 5 + [2] * 5
    assert first.num_steps == 60 and first.row.tolist() == [1] * 5 and (first.begin == 0).all()
    assert second.num_steps == 40 and second.position.tolist() == [*range(5)] and (second.begin == 60).all()
    labels = classify(long)["state"].by_position()
    assert labels.label.tolist() == expected()[0][[0, 2]].tolist() and labels.row.tolist() == [0, 2]


def test_pushed_states_and_coupled_cells_have_positions_too():
    recorder, z = Recorder(lags=4, per="position"), START
    for _ in range(13):
        recorder.push(state=z)
        z = moved(z, PLACES)
    trace = record(Tokens(), START, PLACES, 12, lags=4, per="position")
    np.testing.assert_array_equal(recorder.trace().norm["state"], trace.norm["state"])
    coupled = record(Damped(Tokens()), START, PLACES, 12, lags=4, per="position")
    alone = record(Damped(Tokens()), START.view(15, 1, 4), PLACES.view(15, 1), 12, lags=4)
    np.testing.assert_array_equal(coupled.norm["state"], alone.norm["state"])


def test_what_grows_with_the_run_is_scalars_whatever_the_hidden_size():
    """Beyond the states that are compared, the bytes that a recording holds do not depend on the hidden size."""

    def held(hidden, steps):
        z, recorder = torch.ones(2, 6, hidden), Recorder(lags=2, per="position")
        with PeakBytes() as counter:
            recorder.start(z=z)
            for _ in range(steps):
                recorder.push(z=z / 2)
            assert recorder.trace().num_steps == steps
        return counter.live

    # norm, update, two lags and turning, of 12 positions in float32
    more = [held(hidden, 8 + 64) - held(hidden, 8) for hidden in (8, 64)]
    assert more == [5 * 64 * 12 * 4] * 2


REFUSED = {
    "no position": (torch.zeros(3, 4), {}, r"stream state of shape \(3, 4\) has no position dimension.*latent="),
    "one of two": (
        {"h": torch.zeros(3, 5, 4), "memory": torch.zeros(3, 4)},
        {},
        r"stream memory of shape \(3, 4\) has no position dimension.*per='sample'",
    ),
    "not as many": (
        {"h": torch.zeros(3, 5, 4), "memory": torch.zeros(3, 7, 4)},
        {},
        r"different positions, \{'h': \(5,\), 'memory': \(7,\)\}.*latent=",
    ),
    "beyond": (START, {"position_dim": 3}, r"shape \(3, 5, 4\) has no position dimension"),
    "the batch": (START, {"position_dim": 0}, "dimension 0 is the batch"),
    "another name": (START, {"position_dim": {"h": 1}}, r"position_dim names \['h'\], the streams are \['state'\]"),
    "a word": (START, {"per": "token"}, "per='token' must be 'sample' or 'position'"),
    "of samples": (START, {"per": "sample", "position_dim": 1}, "position_dim=1 is read with per='position' alone"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_positions_is_refused_by_name(name):
    state, options, text = REFUSED[name]
    options = {"per": "position", **options}
    with pytest.raises(ValueError, match=text):
        record(Stationary(lambda z, x: z), state, None, 3, **options)
    with pytest.raises(ValueError, match=text):
        Recorder(**options).push(**(state if isinstance(state, dict) else {"state": state}))


def test_a_dimension_that_is_no_number_is_refused():
    with pytest.raises(TypeError, match="position_dim must hold ints"):
        record(Tokens(), START, PLACES, 3, per="position", position_dim="tokens")


def test_a_trace_per_position_is_stored_and_one_per_sample_as_ever(tmp_path):
    for per in ("position", "sample"):
        trace = record(Tokens(), START, PLACES, 6, lags=2, per=per)
        trace.save(tmp_path / per)
        check_equal(Trace.load(tmp_path / per), trace)
        with np.load(tmp_path / per) as archive:
            assert b'"position"' in archive["header"].tobytes() or per == "sample"
            assert ("position" in archive.files) == (per == "position")


def test_numbers_that_are_not_one_per_position_are_refused():
    trace = record(Tokens(), START, PLACES, 40, lags=4, per="position")
    with pytest.raises(ValueError, match=r"radius of state has shape \(3,\), and the trace has 15"):
        classify(trace, radius=np.zeros(3))
