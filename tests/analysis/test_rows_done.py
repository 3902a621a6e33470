"""Samples that are done before others, by `lengths=`: each has the verdict of its run alone, and rest is no arrival."""

import numpy as np
import pytest
import torch
from torch import nn

from loopgrad.analysis import Recorder, classify, record
from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    EveryCycle,
    RandomTruncation,
    ReversibleBPTT,
    Stationary,
    TruncatedBPTT,
    Until,
)
from loopgrad.models import Damped

START = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
XS = torch.randn(30, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LENGTHS = [30, 5, 0, 29, 5]
FIELDS = ("norm", "update", "cycle", "recurrence", "turning")


def driven():
    half = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    return Stationary(lambda z, x: torch.tanh(half * z) + x, parameters=[half])


def alone(cell, row, length, start=START, xs=XS, **options):
    return record(cell, start[row : row + 1], None, length, xs=xs[:length, row : row + 1], lags=3, **options)


def check_rows(traces, cell, lengths):
    """Every row is in the trace of its length, with the numbers of its run alone."""
    assert [it.num_steps for it in traces] == sorted({length for length in lengths if length}, reverse=True)
    for trace in traces:
        assert trace.row.tolist() == [row for row, length in enumerate(lengths) if length == trace.num_steps]
        assert (trace.begin == 0).all()
        for place, row in enumerate(trace.row):
            own = alone(cell, row, trace.num_steps)
            for field in FIELDS:
                found, expected = (getattr(it, field)["state"] for it in (trace, own))
                np.testing.assert_allclose(found[..., place], expected[..., 0], rtol=1e-12, err_msg=field)


MADE = {
    "bptt": BPTT(),
    "checkpointed": CheckpointedBPTT(),
    "budget": CheckpointedBPTT(memory_budget=20_000),
    "truncated": TruncatedBPTT(3),
    "scope": TruncatedBPTT(scope=EveryCycle(2)),
    "windows": TruncatedBPTT(4, every=2),
    "random": RandomTruncation(4, seed=0),
}


@pytest.mark.parametrize("name", MADE)
def test_a_row_has_the_trace_of_its_run_alone(name):
    cell, recorder = driven(), Recorder(lags=3)
    answers = {"readout": lambda z, *_: z.square().sum(1), "save": "sum"} if name == "windows" else {}
    with recorder.attach(cell):
        rollout = MADE[name](cell, START, None, 30, xs=XS, lengths=LENGTHS, **answers)
        (rollout.outputs if answers else rollout.state).sum().backward()
    check_rows(recorder.traces(), cell, LENGTHS)
    with pytest.raises(ValueError, match=r"done before others.*\(1 of 30 updates, 1 of 29 updates, 2 of 5"):
        recorder.trace()


@pytest.mark.parametrize("name", MADE)
def test_rows_that_data_end_are_as_those_of_lengths(name):
    cell, recorder = driven(), Recorder(lags=3)
    with recorder.attach(cell):
        found = MADE[name](cell, START, None, 30, xs=XS, until=Until(lambda z, *_: z[:, 0].abs() > 2, every=7))
    assert len(set(found.stats.steps)) > 2
    check_rows(recorder.traces(), cell, found.stats.steps)


def test_couplings_periods_and_another_batch_dimension():
    class Two(nn.Module):
        period = 2

        def forward(self, state, inputs, step):
            return torch.tanh(state / 2) + inputs if step % 2 else 0.9 * state

    recorder, cell = Recorder(lags=3), Two()
    with recorder.attach(cell):
        BPTT()(cell, START, None, 30, xs=XS, lengths=LENGTHS)
    check_rows(recorder.traces(), cell, LENGTHS)
    recorder, cell = Recorder(lags=3, batch_dim=1), Stationary(lambda z, x: torch.tanh(z / 2) + x.mT)
    with recorder.attach(cell):
        CheckpointedBPTT()(cell, START.mT, None, 30, xs=XS, lengths=torch.tensor(LENGTHS), batch_dim=1)
    check_rows(recorder.traces(), driven(), LENGTHS)
    recorder, cell = Recorder(lags=3), Damped(driven())
    with recorder.attach(cell):
        ReversibleBPTT()(cell, START, None, 30, xs=XS, lengths=LENGTHS)
    check_rows(recorder.traces(), cell, LENGTHS)


def test_rows_at_rest_are_not_taken_for_converged():
    """Every row turns for ever; one that is done after ten updates has not arrived anywhere."""
    angle = torch.tensor(2.0)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]).double()
    cell, recorder = Stationary(lambda z, x: z @ turn), Recorder(lags=8)
    with recorder.attach(cell):
        BPTT()(cell, START[:, :2], None, 120, lengths=[120, 20, 10, 0, 119])
    labels = {trace.num_steps: classify(trace)["state"].label.tolist() for trace in recorder.traces()}
    assert labels == {120: ["orbit"], 119: ["orbit"], 20: ["orbit"], 10: ["too short"]}


def test_a_row_that_was_done_begins_an_episode_with_the_next_rollout():
    cell, recorder = driven(), Recorder(lags=3)
    lengths = ([10, 4, 10, 0, 7], [6, 6, 2, 6, 0])
    with recorder.attach(cell):
        middle = BPTT()(cell, START, None, 10, xs=XS[:10], lengths=lengths[0]).state
        BPTT()(cell, middle.detach(), None, 6, xs=XS[10:16], lengths=lengths[1])
    found = sorted((int(t.begin[i]), int(row), t.num_steps) for t in recorder.traces() for i, row in enumerate(t.row))
    assert found == [(0, 0, 16), (0, 1, 4), (0, 2, 12), (0, 4, 7), (10, 1, 6), (10, 3, 6)]
    (again,) = (t for t in recorder.traces() if t.num_steps == 6)
    for place, row in enumerate(again.row):
        expected = alone(cell, row, 6, middle, XS[10:])
        np.testing.assert_allclose(
            again.recurrence["state"][..., place], expected.recurrence["state"][..., 0], rtol=1e-12
        )


def test_lengths_go_with_positions_and_leave_no_trace():
    cell, start = Stationary(lambda z, x: torch.tanh(z / 2) + 0.1), START.view(5, 2, 2)
    recorder = Recorder(lags=3, per="position")
    with recorder.attach(cell):
        BPTT()(cell, start, None, 30, lengths=LENGTHS)
    five = recorder.traces()[2]
    assert five.row.tolist() == [1, 1, 4, 4] and five.position.tolist() == [0, 1, 0, 1]
    expected = record(cell, start[[1, 4]], None, 5, lags=3, per="position")
    np.testing.assert_allclose(five.update["state"], expected.update["state"], rtol=1e-12)
    after = Recorder()
    with after.attach(cell):
        BPTT()(cell, start, None, 30)
    assert after.trace().num_steps == 30 and after.trace().row.size == 5


def test_a_loop_of_ones_own_says_which_samples_go_on():
    z, recorder = START, Recorder(lags=3)
    recorder.push(state=z)
    for step in range(30):
        recorder.going(torch.tensor(LENGTHS) > step)
        z = torch.tanh(z / 2) + XS[step]  # rows that are done run on, and nobody looks at them
        recorder.push(state=z)
    check_rows(recorder.traces(), driven(), LENGTHS)
