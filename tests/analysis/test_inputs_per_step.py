"""Cells that read an input per update: after the last one there is none left, and residuals are taken before it."""

import numpy as np
import pytest
import torch
from torch import nn

from loopgrad.analysis import gradient_gaps, record
from loopgrad.gradients import BPTT, TruncatedBPTT


class Reader(nn.Module):
    """Reads update t's input from a list, a tensor or a dict; one cycle is `period` updates."""

    def __init__(self, period=1, batch_first=False):
        super().__init__()
        self.rnn, self.period, self.batch_first = nn.RNNCell(3, 8), period, batch_first

    def forward(self, state, inputs, step):
        return self.rnn(inputs[:, step] if self.batch_first else inputs[step], state)


class Narrowing(Reader):
    """Reads a slice, which is not there after the last update: torch calls that a RuntimeError."""

    def forward(self, state, inputs, step):
        return self.rnn(inputs.narrow(1, step, 1).squeeze(1), state)


TOKENS = torch.randn(5, 12, 3, generator=torch.Generator().manual_seed(0))
CASES = {
    "a list": (Reader(), list(TOKENS.unbind(1))),
    "a dict": (Reader(), dict(enumerate(TOKENS.unbind(1)))),
    "time first": (Reader(3), TOKENS.transpose(0, 1)),
    "batch first": (Reader(2, batch_first=True), TOKENS),
    "a narrowed slice": (Narrowing(), TOKENS),
}
every_case = pytest.mark.parametrize("case", CASES)


@every_case
@pytest.mark.parametrize("reevaluate", [None, torch.float64])
def test_the_residual_is_taken_one_cycle_before_the_end(case, reevaluate):
    cell, inputs = CASES[case]
    trace = record(cell, torch.zeros(5, 8), inputs, 12, reevaluate=reevaluate)
    asked = record(cell, torch.zeros(5, 8), inputs, 12, at=12 - cell.period, reevaluate=reevaluate)
    assert (trace.num_steps, trace.at) == (12, 12 - cell.period)
    np.testing.assert_array_equal(trace.joint, asked.joint)
    np.testing.assert_array_equal(trace.update["state"], asked.update["state"])
    shorter = record(cell, torch.zeros(5, 8), inputs, 12 - cell.period, reevaluate=reevaluate)
    assert shorter.at == 12 - cell.period  # where inputs are left, it is taken at the end as ever


@every_case
@pytest.mark.parametrize("reevaluate", [None, torch.float64])
def test_what_was_asked_for_and_cannot_be_had_names_the_argument(case, reevaluate):
    cell, inputs = CASES[case]
    with pytest.raises(ValueError, match=f"at=12 .*step=12.*at={12 - cell.period} or less"):
        record(cell, torch.zeros(5, 8), inputs, 12, at=12, reevaluate=reevaluate)


def test_an_input_that_is_missing_before_the_end_is_the_cells_own_error():
    cell, inputs = CASES["a list"]
    with pytest.raises(IndexError):
        record(cell, torch.zeros(5, 8), inputs, 13)


@pytest.mark.parametrize("case", [name for name, (_, inputs) in CASES.items() if isinstance(inputs, torch.Tensor)])
def test_gaps_are_judged_there_as_well(case):
    cell, inputs = CASES[case]

    def loss(own, estimator, rows):
        dtype = own.rnn.weight_ih.dtype
        chosen = inputs[:, rows] if case == "time first" else inputs[rows]
        return estimator(own, torch.zeros(len(rows), 8, dtype=dtype), chosen.to(dtype), 12).state.square().sum()

    estimators = {"whole": BPTT(), "last": TruncatedBPTT(num_steps=1)}
    found = gradient_gaps(estimators, loss, cell, cell, torch.zeros(5, 8), inputs, 12)
    at = 12 - cell.period
    assert [gap.at for gap in found] == [at, at]
    expected = record(cell, torch.zeros(5, 8), inputs, 12, at=at, reevaluate=torch.float64).joint_relative
    for gap in found:
        np.testing.assert_allclose(gap.residual, expected, rtol=1e-12)
        assert np.isfinite(gap.radius).all()
    assert found[0].cosine == pytest.approx(1, abs=1e-6)
