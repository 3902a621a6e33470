"""The bench of Newton's method on trajectories: exponents are as set, depth is counted by hand."""

import pytest
import torch

from loopgrad.experiments.benches.parallel import WAYS, Parallel
from loopgrad.experiments.benches.parallel_words import words


@pytest.mark.slow
def test_rows_say_what_is_set_and_what_it_takes():
    bench = Parallel(size=8, num_steps=32, growths=(0.55, 0.8), max_iterations=32)
    rows = list(bench.rows())
    assert [row["method"] for row in rows] == [*WAYS, *WAYS]
    for row in rows:
        assert abs(row["measured"] - row["exponent"]) < 0.02
        assert row["depth"] == 1 + row["iterations"] * (1 + row["levels"]) and row["speed-up"] == 32 / row["depth"]
        assert row["levels"] == (11 if "ELK" in row["method"] else 9)
        if row["met"]:
            assert row["apart"] <= 1e-6 and row["gradient"] < 1e-8 and row["products"] > 1
    with pytest.raises(ValueError, match="no gain gives 2 features"):
        list(Parallel(size=2, num_steps=20, growths=(4.0,)).rows())
    assert rows[0]["met"] and rows[0]["iterations"] < rows[1]["iterations"]


def test_the_exponent_is_that_of_the_product_of_jacobians():
    bench = Parallel(size=3, num_steps=40)
    weight, state, xs = bench._drawn()
    found, _ = bench._exponent(0.9)
    rates = []
    for row in range(2):
        z, product = state[row], torch.eye(3, dtype=torch.float64)
        for x in xs[:, row]:
            z = torch.tanh(0.9 * weight @ z + x)
            product = torch.diag(1 - z**2) @ (0.9 * weight) @ product
        rates.append(float(torch.linalg.svdvals(product)[0].log()) / 40)
    assert abs(found - sum(rates) / 2) < 0.05  # the largest growth of any vector, beside that of one drawn


def row(method, exponent, iterations, speed_up, met, apart=0.0):
    return {
        "method": method, "exponent": exponent, "iterations": iterations, "speed-up": speed_up, "met": met,
        "apart": apart,
    }  # fmt: skip


def test_the_words_tell_shorter_chains_from_longer_ones_and_from_other_states():
    rows = [row("a", -0.5, 4, 12.0, True), row("a", 0.0, 90, 0.5, True), row("a", 0.1, 100, 0.4, False, 0.3)]
    rows += [row("b", -0.5, 256, 0.2, False, None)]
    assert words(rows).splitlines() == [
        "a waits less than a loop at -0.5 (4 steps); comes to its states in a longer chain at +0 (90 steps); ends with "
        "other states, of a residual within the tolerance, at +0.1 (100 steps).",
        "b waits less than a loop nowhere; runs out of steps at -0.5 (256 steps).",
    ]
