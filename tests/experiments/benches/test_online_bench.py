"""The rows of the bench of online gradients: exact ones are, what is carried does not grow, and who is taught."""

import pytest
import torch

from loopgrad.experiments.benches.online import ASKED, NAMES, TAUGHT, Online, Recall
from loopgrad.gradients import BPTT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows():
    sizes = {"hidden_size": 4, "batch_size": 3, "delays": (2, 20), "trained": (2,), "updates": 4, "draws": 2}
    return {(row["delay"], row["gradient"]): row for row in Online(**sizes, seeds=(0, 1)).rows()}


def test_exact_gradients_are_exact_and_the_others_are_not(rows):
    assert len(rows) == 2 * len(NAMES)
    for (_, name), row in rows.items():
        exact = name in ("BPTT", "checkpointed", "RTRL", "SnAp(2)")  # two updates reach all of a full recurrent matrix
        for when in ("first", "later"):
            assert (row[f"error {when}"] < 1e-5) == exact, row
    for delay in (2, 20):  # a weight of a GRU acts on one feature
        assert rows[delay, "SnAp(1)"]["error first"] == pytest.approx(rows[delay, "diagonal"]["error first"], rel=1e-4)


def test_what_online_gradients_keep_does_not_grow_and_truncation_keeps_no_more(rows):
    for name in ("RTRL", "SnAp(1)", "diagonal", "UORO", "KF-RTRL"):
        assert rows[2, name]["saved KiB"] == rows[20, name]["saved KiB"]
    assert rows[20, "BPTT"]["saved KiB"] > 1.9 * rows[2, "BPTT"]["saved KiB"]
    assert rows[20, "SnAp(1)"]["saved KiB"] < rows[20, "RTRL"]["saved KiB"]
    per_update = rows[20, "BPTT"]["saved KiB"] / (20 + ASKED)
    window = rows[20, "truncated"]["window"]
    assert window == 20 + ASKED or window * per_update <= rows[20, "SnAp(1)"]["saved KiB"] < (window + 1) * per_update


def test_who_is_taught(rows):
    for (delay, name), row in rows.items():
        assert (row["loss"] is not None) == (delay == 2 and name in TAUGHT)
    taught = rows[2, "BPTT"]
    assert taught["updates"] == [0, 1, 2, 3, 4] and taught["least"] <= taught["loss"] <= taught["greatest"]
    assert rows[2, "UORO"]["losses"][0] == taught["losses"][0], "first weights differ"


def test_labels_are_the_bit_just_read_and_then_the_first():
    network = Recall(4, 3, torch.Generator().manual_seed(0))
    x, labels = network.batch(5, torch.Generator().manual_seed(1))
    assert x.shape == (3 + ASKED, 5, 3)
    assert torch.equal(labels[:3], (x[:3, :, 1] > 0).long())
    assert torch.equal(labels[3:], (x[0, :, 0] > 0).long().expand(ASKED, 5))
    one, two = (network.losses(x, labels, BPTT(), question)[0] for question in (False, True))
    assert one.isfinite() and two.isfinite() and one != two
