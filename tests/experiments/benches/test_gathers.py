"""The bench of all-gathers: ours by the number of units, the plain loop's by the number of updates, gradients exact."""

import pytest

from loopgrad.experiments import records
from loopgrad.experiments.benches.gathers import LOOP, METHODS, PLACES, Gathers


@pytest.mark.slow
def test_the_command_counts_what_the_hooks_do(loopgrad, tmp_path):
    updates, blocks = 3, 1
    sizes = (f"bench.updates={updates}", f"bench.num_blocks={blocks}", "bench.width=4", "bench.batch_size=4")
    result = loopgrad("bench", "gathers", *sizes, "output_dir=out")
    assert result.code == 0 and f"blocks+cell+model: 6 where the plain loop has {2 * 2 * updates + 2}" in result.out
    (record,) = records.read(tmp_path / "out" / "gathers.json")
    rows = record["rows"]
    assert [(row["sharded"], row["resharded"], row["method"]) for row in rows] == [
        (place, resharded, method) for place in PLACES for resharded in ("yes", "no") for method in METHODS
    ]
    for row in rows:
        passes = 2 if row["resharded"] == "yes" else 1  # forward and backward, or forward alone
        inside = {"cell": 1, "cell+model": 1, "blocks+cell+model": 1 + blocks}[row["sharded"]]
        outside = row["units"] - inside  # the model, which a step calls once
        assert row["reduce-scatters"] == row["units"] == inside + row["sharded"].endswith("model")
        expected = passes * (inside * updates + outside) if row["method"] == LOOP else passes * row["units"]
        assert row["all-gathers"] == expected, row
        assert row["error"] < 1e-14, row


def test_an_odd_batch_is_refused():
    with pytest.raises(ValueError, match="batch_size=3 must be even: each of two processes has half of it"):
        Gathers(batch_size=3)
