"""Bytes counted without data are those of a real step, and grow with depth as each estimator says."""

from functools import cache

import pytest
import torch

from loopgrad.analysis.counters import PeakBytes
from loopgrad.experiments.benches.fits import METHODS, Fits
from loopgrad.models import TRM
from loopgrad.models.losses import token_loss

pytestmark = pytest.mark.slow
SMALL = Fits(hidden_size=16, num_layers=1, num_heads=2, seq_len=9, L_cycles=(2,), H_cycles=(2, 4), dtype="float32")
CASES = [("mlp", "float32"), ("mlp", "bfloat16"), ("attention", "bfloat16")]


@pytest.fixture(scope="module")
def rows():
    return {(row["T"], row["method"]): row["MiB per sample"] * 2**20 for row in SMALL.rows()}


@pytest.mark.parametrize(("mixer", "dtype"), CASES)
@pytest.mark.parametrize("name", METHODS)
def test_bytes_per_sample_are_those_of_a_real_step(name, mixer, dtype):
    estimator, coupling = METHODS[name]
    rate = "1/64" if coupling == "leapfrog" else None
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mixer": mixer}
    model = TRM(11, 9, **sizes, H_cycles=2, L_cycles=2, coupling=coupling, coupling_rate=rate)
    peaks = []
    for batch in (4, 8):
        model.zero_grad()
        tokens = torch.zeros(batch, 9, dtype=torch.int64)
        with PeakBytes() as peak:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                output = model(None, tokens, None, estimator)
                loss = token_loss(output.logits, tokens) + output.q_halt.sum()
            loss.backward()
        peaks.append(peak.peak)
    assert foreseen_of(mixer, dtype)[name] == (peaks[1] - peaks[0]) / 4


@cache
def foreseen_of(mixer, dtype):
    bench = Fits(16, 1, 2, 9, mixer, L_cycles=(2,), H_cycles=(2,), dtype=dtype)
    return {row["method"]: row["MiB per sample"] * 2**20 for row in bench.rows()}


def test_only_what_keeps_nothing_per_update_does_not_grow(rows):
    assert rows[4, "Reversible, leapfrog"] == rows[2, "Reversible, leapfrog"]
    assert rows[4, "one step (biased)"] == rows[2, "one step (biased)"]
    assert rows[4, "BPTT"] > 1.8 * rows[2, "BPTT"]
