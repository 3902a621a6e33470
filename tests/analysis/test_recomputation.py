"""What a backward pass computes again reads the copies that the forward pass read."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from loopgrad.analysis import StateMap, cast, gradient_gaps, operator_norm, reference_gradients, spectral_radius
from loopgrad.gradients import BPTT, CheckpointedBPTT


class Cell(nn.Module):
    def __init__(self, again=None):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.dropout, self.again = nn.Linear(4, 4), nn.Dropout(0.5), again

    def block(self, z):
        return torch.tanh(self.dropout(self.linear(z)) / 2)

    def forward(self, state, inputs, step):
        z = self.block(state) if self.again is None else checkpoint(self.block, state, use_reentrant=self.again)
        return z + inputs


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("training", [False, True])
def test_spectra_go_through_checkpoints_within_a_cell(training):
    plain, again = Cell().train(training), Cell(again=False).train(training)
    found = [(spectral_radius(f := StateMap(it, X, X), f.point), operator_norm(f, f.point)) for it in (plain, again)]
    np.testing.assert_allclose(*found, rtol=1e-12)


def test_reference_gradients_go_through_checkpoints_within_a_cell():
    def loss(own):
        x = cast(X, own.linear.weight.dtype)
        return BPTT()(own, x, x, 4).state.square().sum()

    expected = reference_gradients(loss, Cell().eval())
    for name, gradient in reference_gradients(loss, Cell(again=False).eval()).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-14, atol=0)


def test_estimators_that_compute_again_meet_the_buffers_of_their_forward_pass():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
            self.register_buffer("scale", torch.ones(()))

        def forward(self, state, inputs, step):
            self.scale.mul_(0.9)
            return torch.tanh(self.norm(self.linear(state) + inputs) + self.scale)

    cell = Normed()

    def loss(own, estimator, rows):
        x = cast(X, own.linear.weight.dtype)[rows]
        return estimator(own, x, x, 6).state.square().sum()

    estimators = {"bptt": BPTT(), "again": CheckpointedBPTT()}
    one, other = gradient_gaps(estimators, loss, cell, cell, X, X, 6, radius_samples=0)
    assert one.relative_error == other.relative_error < 1e-4 and cell.scale == 1 and not cell.norm.running_mean.any()
