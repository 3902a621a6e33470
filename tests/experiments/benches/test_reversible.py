"""The reversible bench at a tiny size, with and without the peers."""

import importlib.util
import sys

import pytest

from loopgrad.experiments.benches.reversible import Reversible

TINY = dict(hidden_size=16, seq_len=4, batch_size=2, lengths=(4,), repeats=1)
PEERS = {"revlib": ("revlib function", "revlib graph"), "memcnn": ("memcnn",)}
EXACT = ("BPTT", "ReversibleBPTT", "CheckpointedBPTT")


def measured():
    return {(row["group"], row["method"]): row for row in Reversible(**TINY).rows()}


@pytest.fixture(scope="module")
def rows():
    return measured()


@pytest.mark.slow
def test_ours_is_as_exact_as_the_loop_and_breaks_nothing(rows):
    ours = {key: row for key, row in rows.items() if key[1].startswith(EXACT)}
    assert len(ours) == 6
    for (group, _), row in ours.items():
        assert row["broke"] == "-"
        assert row["error"] < 2 * rows[group, "loop"]["error"] < 1e-5
        assert row["FLOPs"] <= 1.34


@pytest.mark.slow
def test_every_method_computes_the_gradient_of_the_loop_where_it_computes_one(rows):
    for (_, method), row in rows.items():
        if row["broke"] != "not installed":
            assert row["error"] < 1e-5 or "None" in row["broke"], method


@pytest.mark.slow
def test_the_checks_find_what_checkpoints_break(rows):
    assert rows["additive", "torch reentrant"]["broke"] == "hooks x4, autograd.grad raises"
    assert rows["additive", "torch checkpoint"]["broke"] == "-"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peer", "method", "words"),
    [("revlib", "revlib function", ("hooks x4", "encoded x raises")), ("memcnn", "memcnn", ("x.grad None",))],
)
def test_the_checks_find_what_peers_break(rows, peer, method, words):
    found = rows["additive", method]["broke"]
    if importlib.util.find_spec(peer) is None:
        assert found == "not installed"
    else:
        assert all(word in found for word in words)


@pytest.mark.slow
def test_without_peers_their_rows_say_so(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] in PEERS] + list(PEERS):
        monkeypatch.setitem(sys.modules, name, None)
    rows = measured()
    for method in [method for methods in PEERS.values() for method in methods]:
        assert rows["additive", method]["broke"] == "not installed"
    assert rows["additive", "ReversibleBPTT"]["broke"] == "-"


@pytest.mark.parametrize("lengths", [(3,), (4, 0)])
def test_lengths_that_are_not_even_are_refused(lengths):
    with pytest.raises(ValueError, match="even"):
        Reversible(**{**TINY, "lengths": lengths}).rows()


@pytest.mark.slow
def test_the_command_writes_its_record(loopgrad, tmp_path):
    sizes = [f"bench.{name}={list(value) if isinstance(value, tuple) else value}" for name, value in TINY.items()]
    result = loopgrad("bench", "reversible", *sizes, "output_dir=out")
    assert result.code == 0, result.err
    assert (tmp_path / "out" / "reversible.json").exists()
