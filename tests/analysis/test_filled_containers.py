"""A cell that fills the container of the state that it was given."""

import torch

from loopgrad.analysis import record


def test_a_cell_that_fills_its_container_is_recorded_as_one_that_returns_another():
    class Pure(torch.nn.Module):
        def forward(self, state, inputs, step):
            return {"h": state["h"] + 1.0}

    class Filling(torch.nn.Module):
        def forward(self, state, inputs, step):
            state["h"] = state["h"] + 1.0
            return state

    state = {"h": torch.zeros(2, 4)}
    found = [record(cell, state, None, 12, lags=4) for cell in (Pure(), Filling())]
    assert (found[0].update["h"] == found[1].update["h"]).all() and found[1].update["h"][0, 0] == 2.0
    assert (found[0].joint == found[1].joint).all() and not state["h"].any()
