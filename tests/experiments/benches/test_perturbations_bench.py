"""The bench of perturbations: a row for each chunk, ratios of the rounds, bytes that grow with the chunk."""

import pytest

from loopgrad.experiments.benches import perturbations
from loopgrad.experiments.benches.perturbations import Perturbations


@pytest.mark.slow
def test_a_ratio_is_the_time_of_an_evaluation_over_that_of_a_plain_pass(monkeypatch):
    def timed(runs, repeats, clock):
        assert list(runs) == ["plain", "forward 1", "both 1", "forward 4", "both 4", "forward 8", "both 8"]
        for run in runs.values():
            run()
        return {"plain": [2.0], "forward 1": [18.0], "both 1": [36.0], "forward 4": [9.0], "both 4": [18.0]} | {
            "forward 8": [17.0],
            "both 8": [34.0],
        }

    monkeypatch.setattr(perturbations, "interleaved", timed)
    bench = Perturbations((3,), (2,), (1, 4, 8), population=4, updates=2)
    rows = bench.rows()
    assert [(row["perturbed"], row["chunk"]) for row in rows] == [
        (moved, chunk) for moved in ("weights", "weights and inputs") for chunk in (1, 4, 8)
    ]
    # one plain pass in 2 s; the estimate is 9 evaluations, and 17 where a chunk holds more than the population
    assert [(row["time"], row["with backward"]) for row in rows[:3]] == [(1.0, 2.0), (0.5, 1.0), (0.5, 1.0)]
    assert rows[0]["peak MiB"] < rows[1]["peak MiB"] < rows[2]["peak MiB"] < rows[5]["peak MiB"]


def test_widths_and_batches_go_together():
    with pytest.raises(ValueError, match="as many"):
        Perturbations((3, 4), (2,))
