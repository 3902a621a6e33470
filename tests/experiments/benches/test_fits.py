"""Bytes counted without data are those of a real step, and grow with depth as each estimator says."""

import pytest
import torch

from loopgrad.analysis.counters import PeakBytes
from loopgrad.experiments.benches.fits import METHODS, Fits
from loopgrad.models import TRM
from loopgrad.models.losses import token_loss

pytestmark = pytest.mark.slow
SMALL = Fits(hidden_size=16, num_layers=1, num_heads=2, seq_len=9, L_cycles=(2,), H_cycles=(2, 4), dtype="float32")


@pytest.fixture(scope="module")
def rows():
    return {(row["T"], row["method"]): row["MiB per sample"] * 2**20 for row in SMALL.rows()}


@pytest.mark.parametrize("name", METHODS)
def test_bytes_per_sample_are_those_of_a_real_step(rows, name):
    estimator, coupling = METHODS[name]
    model = TRM(
        11, 9, hidden_size=16, num_layers=1, num_heads=2, H_cycles=4, L_cycles=2, mixer="mlp", coupling=coupling
    )
    peaks = []
    for batch in (4, 8):
        model.zero_grad()
        tokens = torch.zeros(batch, 9, dtype=torch.int64)
        with PeakBytes() as peak:
            output = model(None, tokens, None, estimator)
            (token_loss(output.logits, tokens) + output.q_halt.sum()).backward()
        peaks.append(peak.peak)
    assert rows[4, name] == pytest.approx((peaks[1] - peaks[0]) / 4, rel=0.02)


def test_only_what_keeps_nothing_per_update_does_not_grow(rows):
    assert rows[4, "Reversible, leapfrog"] == rows[2, "Reversible, leapfrog"]
    assert rows[4, "one step (biased)"] == rows[2, "one step (biased)"]
    assert rows[4, "BPTT"] > 1.8 * rows[2, "BPTT"]
