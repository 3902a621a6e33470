"""The rows of the bench of losses at every step: exact gradients, and bytes that grow as each method says."""

import pytest

from loopgrad.experiments.benches.outputs import METHODS, Outputs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows():
    found = Outputs(size=8, batch_size=4, lengths=(32, 128), repeats=1).rows()
    return {(row["updates"], row["save"], row["method"]): row for row in found}


def test_every_method_is_measured_and_all_but_truncation_are_exact(rows):
    assert len(rows) == 4 * len(METHODS)
    for (_, _, method), row in rows.items():
        assert (row["error"] > 1e-4) == (method == "TruncatedBPTT(16)"), row
        assert (row["bits"] == "differ") == (method in ("TruncatedBPTT(16)", "ReversibleBPTT")), row


@pytest.mark.parametrize("save", ["sum", "all"])
def test_bytes_grow_as_each_method_says(rows, save):
    """Less the encoded sequence and the kept losses, which all of them hold."""

    def own(updates, method):
        row = rows[updates, save, method]
        shared = updates * 4 * (8 + (save == "all")) * 4
        return row["saved MiB"] * 2**20 - shared

    assert own(128, "loop") > 3.5 * own(32, "loop")
    assert own(128, "CheckpointedBPTT") < 3 * own(32, "CheckpointedBPTT") < own(128, "loop")
