"""Cells that write into the state that they were given: into its containers, and into its tensors."""

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from loopgrad.analysis import CellSite, ModuleSite, Recorder, classify, record
from loopgrad.gradients import BPTT


@dataclasses.dataclass
class Carry:
    h: torch.Tensor
    c: torch.Tensor


def moved(h):
    return h + 1.0


class Cell(torch.nn.Module):
    """One of several ways to write h + 1, c / 2."""

    def __init__(self, way: Callable):
        super().__init__()
        self.way = way

    def forward(self, state, inputs, step):
        return self.way(state)


def pure(state):
    return {"h": moved(state["h"]), "c": state["c"] / 2}


def item_by_item(state):
    state["h"] = moved(state["h"])
    state["c"] = state["c"] / 2
    return state


def updated(state):
    state.update(h=moved(state["h"]), c=state["c"] / 2)
    return dict(state)


def in_a_list(state):
    state[0] = moved(state[0])
    state[1:] = [state[1] / 2]
    return state


def in_a_dataclass(state):
    state.h, state.c = moved(state.h), state.c / 2
    return state


def nested(state):
    state["inner"][0]["h"] = moved(state["inner"][0]["h"])
    state["inner"][1] = state["inner"][1] / 2
    return state


START = (torch.zeros(2, 4), torch.ones(2, 3))
FILLING = {
    "item by item": (item_by_item, lambda h, c: {"h": h, "c": c}),
    "updated": (updated, lambda h, c: {"h": h, "c": c}),
    "list": (in_a_list, lambda h, c: [h, c]),
    "dataclass": (in_a_dataclass, lambda h, c: Carry(h, c)),
    "nested": (nested, lambda h, c: {"inner": [{"h": h}, c]}),
}


def loop(cell, state, num_steps):
    """A loop of the user's own, which does not copy containers as estimators do."""
    for step in range(num_steps):
        state = cell(state, None, step)
    return state


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", FILLING)
def test_a_cell_that_fills_its_container_is_recorded_as_one_that_returns_another(name, inference):
    way, build = FILLING[name]
    reference = record(Cell(pure), {"h": START[0], "c": START[1]}, None, 12, lags=4)
    state, recorder = build(*START), Recorder(lags=4)
    with torch.inference_mode() if inference else nullcontext():
        trace = record(Cell(way), build(*START), None, 12, lags=4)
        cell = Cell(way)
        with recorder.attach(cell, CellSite("")):
            loop(cell, state, 12)
    for found in (trace, recorder.trace()):
        for own, stream in zip(found.streams, ("h", "c"), strict=True):
            np.testing.assert_array_equal(found.update[own], reference.update[stream])
            np.testing.assert_array_equal(found.recurrence[own], reference.recurrence[stream])
        labels = {stream: verdicts.counts() for stream, verdicts in classify(found, streams=["joint"]).items()}
        assert labels == {"joint": {"too short": 2}}
    assert not START[0].any() and (START[1] == 1).all()


def test_a_drifting_cell_that_fills_its_container_drifts():
    recorder = Recorder(lags=8)
    cell = Cell(item_by_item)
    with recorder.attach(cell, CellSite("")), torch.no_grad():
        loop(cell, {"h": START[0], "c": START[1]}, 30)
    assert classify(recorder.trace())["h"].counts() == {"drift": 2}
    with recorder.attach(cell, CellSite("")), torch.no_grad():
        BPTT()(cell, {"h": START[0], "c": START[1]}, None, 30)


def added(state):
    return state.add_(1.0)


def added_later(state):
    new = state + 1.0
    state.zero_()
    return new


def added_to_a_part(state):
    state[:, 0] += 1.0
    return state


def copied(state):
    state.add_(1.0)
    return state.clone()


WRITING = {"added": added, "added later": added_later, "to a part": added_to_a_part, "copied": copied}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", WRITING)
def test_record_refuses_what_is_written_into_a_tensor_and_never_writes_into_the_callers(name, inference):
    start = torch.zeros(2, 4)
    with torch.inference_mode() if inference else nullcontext(), pytest.raises(ValueError, match="in place at step 0"):
        record(Cell(WRITING[name]), start, None, 12)
    assert not start.any() and start._version == 0


def test_record_refuses_what_is_written_later_on_into_what_was_handed_on():
    class Late(torch.nn.Module):
        def forward(self, state, inputs, step):
            if step < 3:
                return {"h": state["h"] + 1, "c": state["c"]}
            return {"h": state["h"] + 1, "c": state["c"].mul_(2)}

    for mode in (nullcontext(), torch.inference_mode()):
        start = {"h": torch.zeros(2, 4), "c": torch.ones(2, 4)}
        with mode, pytest.raises(ValueError, match="in place at step 3"):
            record(Late(), start, None, 12)
        assert (start["c"] == 1).all()


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", WRITING)
def test_a_recorder_refuses_it_or_measures_it(name, inference):
    """Never "converged": where torch counts writes they are refused, under inference mode copies were kept."""
    cell, recorder = Cell(WRITING[name]), Recorder(lags=4)
    with torch.inference_mode() if inference else torch.no_grad():
        start = torch.zeros(2, 4)
        if not inference:
            with pytest.raises(ValueError, match="changed in place"), recorder.attach(cell, CellSite("")):
                loop(cell, start, 30)
            return
        with recorder.attach(cell, CellSite("")):
            loop(cell, start, 30)
    step = 1.0 if name == "to a part" else 2.0
    assert recorder.trace().update["state"].tolist() == [[step, step]] * 30
    assert classify(recorder.trace())["state"].counts() == {"drift": 2}


def test_a_loop_that_copies_states_is_measured_although_its_cell_writes():
    class Later(torch.nn.Module):
        def forward(self, state, inputs, step):
            return state.add_(1.0) if step else state + 1.0

    cell, recorder, z = Later(), Recorder(), torch.zeros(2, 4)
    with recorder.attach(cell, CellSite("")):
        for step in range(5):
            z = cell(z.clone(), None, step)
    assert recorder.trace().update["state"].tolist() == [[2.0, 2.0]] * 5


@pytest.mark.parametrize("inference", [False, True])
def test_what_is_handed_on_is_still_no_update(inference):
    class TwoStreams(torch.nn.Module):
        period = 2

        def forward(self, state, inputs, step):
            if step % 2:
                return {"low": state["low"], "high": state["high"] + 1}
            return {"low": state["low"] + 1, "high": state["high"]}

    cell, recorder = TwoStreams(), Recorder()
    with torch.inference_mode() if inference else nullcontext():
        state = {"low": torch.zeros(2, 4), "high": torch.zeros(2, 4)}
        with recorder.attach(cell, CellSite("")):
            loop(cell, state, 4)
        found = [recorder.trace(), record(cell, state, None, 4)]
    for trace in found:
        np.testing.assert_array_equal(trace.update["low"][:, 0], [2, np.nan, 2, np.nan])
        np.testing.assert_array_equal(trace.update["high"][:, 0], [np.nan, 2, np.nan, 2])


def test_a_module_that_writes_into_its_output_is_measured_under_inference_mode():
    class Integrator(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.total = torch.zeros(2, 4)

        def forward(self, x):
            return self.total.add_(x)

    with torch.inference_mode():
        model, recorder = Integrator(), Recorder()
        with recorder.attach(model, ModuleSite({"": "total"})):
            for _ in range(4):
                model(torch.ones(2, 4))
    assert recorder.trace().update["total"].tolist() == [[2.0, 2.0]] * 3
