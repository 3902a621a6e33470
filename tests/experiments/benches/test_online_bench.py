"""The rows of the bench of online gradients: exact ones are, what is carried does not grow, and who is taught."""

import json

import pytest
import torch

from loopgrad.experiments.benches.online import NAMES, TAUGHT, WINDOWS, Online
from loopgrad.experiments.benches.online_recall import ASKED, STARTS, Recall
from loopgrad.experiments.benches.online_words import words
from loopgrad.gradients import BPTT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def both():
    sizes = {"hidden_size": 4, "batch_size": 3, "delays": (2, 20), "trained": (2,), "updates": 4, "draws": 2}
    sizes["trainings"] = 8
    found = list(Online(**sizes, seeds=(0, 1)).rows())
    assert [row["start"] for row in found] == ["uniform"] * 2 * len(NAMES) + ["chrono"] * 2 * len(NAMES)
    return {start: {(row["delay"], row["gradient"]): row for row in found if row["start"] == start} for start in STARTS}


@pytest.fixture(scope="module", params=STARTS)
def rows(request, both):
    return both[request.param]


def test_exact_gradients_are_exact_and_the_others_are_not(rows):
    assert len(rows) == 2 * len(NAMES)
    for (delay, name), row in rows.items():
        exact = name in ("BPTT", "checkpointed", "RTRL", "SnAp(2)")  # two updates reach all of a full recurrent matrix
        exact |= row["window"] == delay + ASKED
        for when in ("first", "later"):
            assert (row[f"error {when}"] < 1e-5) == exact, row
    for row in rows.values():
        if row["as"] is not None:
            assert row["error later"] == pytest.approx(rows[row["delay"], row["as"]]["error later"], rel=1e-3, abs=1e-5)
    for delay in (2, 20):  # a weight of a GRU acts on one feature
        assert rows[delay, "SnAp(1)"]["error first"] == pytest.approx(rows[delay, "diagonal"]["error first"], rel=1e-4)


def test_what_online_gradients_keep_does_not_grow_and_truncation_keeps_no_more(rows):
    for name in ("RTRL", "SnAp(1)", "diagonal", "UORO", "KF-RTRL"):
        assert rows[2, name]["saved KiB"] == rows[20, name]["saved KiB"]
    assert rows[20, "BPTT"]["saved KiB"] > 1.9 * rows[2, "BPTT"]["saved KiB"]
    assert rows[20, "SnAp(1)"]["saved KiB"] < rows[20, "RTRL"]["saved KiB"]
    per_update = rows[20, "BPTT"]["saved KiB"] / (20 + ASKED)
    for name, by in WINDOWS.items():
        window = rows[20, name]["window"]
        assert window == 20 + ASKED or window * per_update <= rows[20, by]["saved KiB"] < (window + 1) * per_update
    assert rows[20, "truncated"]["window"] < rows[20, "truncated, KF-RTRL"]["window"]


def test_who_is_taught(rows):
    for (delay, name), row in rows.items():
        assert (row["loss"] is not None) == (delay == 2 and name in TAUGHT)
        assert (row["as"] is None) == (name in TAUGHT)
    taught = rows[2, "BPTT"]
    assert taught["updates"] == list(range(9)) and taught["least"] <= taught["loss"] <= taught["greatest"]
    firsts = [[losses[0] for losses in rows[2, name]["losses"]] for name in ("UORO", "BPTT")]
    assert firsts[0] == firsts[1] and firsts[0][0] != firsts[0][1], "first weights differ, or do not between seeds"
    assert taught["loss"] == pytest.approx(sum(losses[-1] for losses in taught["losses"]) / 2)


def test_trainings_are_drawn_and_told(rows, tmp_path):
    bench = Online(trained=(2,))
    bench.figures(list(rows.values()), tmp_path)
    table = json.loads((tmp_path / "online-figure.json").read_text())
    assert "truncated, KF-RTRL" in json.dumps(table)
    assert [line.split(" ")[3] for line in bench.text(list(rows.values())).splitlines()] == [
        "SnAp(1)",
        "UORO",
        "KF-RTRL",
    ]


def ended(name, least, greatest, window=None):
    loss = {"loss": (least + greatest) / 2, "least": least, "greatest": greatest}
    return {
        "start": "chrono",
        "delay": 10,
        "gradient": name,
        "window": window,
        "saved KiB": 128.2,
        "peak KiB": 300.4,
    } | loss


def test_an_online_gradient_is_ahead_where_ranges_are_apart():
    beside = {"a": "t", "b": "t", "c": "t"}
    rows = [ended("a", 0.1, 0.2), ended("b", 0.25, 0.35), ended("c", 0.5, 0.6), ended("t", 0.3, 0.4, 17)]
    truncated = "truncated to 17 updates 0.35 (0.3 to 0.4; 128 KiB kept, 300 at the peak)."
    assert words(rows, beside).splitlines() == [
        f"chrono, delay 10: a beats truncation: 0.15 (0.1 to 0.2; 128 KiB kept, 300 at the peak), {truncated}",
        f"chrono, delay 10: b does not differ from truncation by more than their ranges: "
        f"0.3 (0.25 to 0.35; 128 KiB kept, 300 at the peak), {truncated}",
        f"chrono, delay 10: c is beaten by truncation: 0.55 (0.5 to 0.6; 128 KiB kept, 300 at the peak), {truncated}",
    ]
    assert words([{**row, "loss": None} for row in rows], beside) == ""


def test_labels_are_the_bit_just_read_and_then_the_first():
    network = Recall(4, 3, torch.Generator().manual_seed(0))
    x, labels = network.batch(5, torch.Generator().manual_seed(1))
    assert x.shape == (3 + ASKED, 5, 3)
    assert torch.equal(labels[:3], (x[:3, :, 1] > 0).long())
    assert torch.equal(labels[3:], (x[0, :, 0] > 0).long().expand(ASKED, 5))
    one, two = (network.losses(x, labels, BPTT(), question)[0] for question in (False, True))
    assert one.isfinite() and two.isfinite() and one != two


def test_gates_that_begin_open_are_open_as_long_as_a_sequence_and_the_rest_begins_alike():
    plain, chrono = (Recall(512, 30, torch.Generator().manual_seed(0), it) for it in STARTS)
    gate = slice(512, 1024)
    memory = (chrono.gru.bias_ih[gate] + chrono.gru.bias_hh[gate]).exp()
    assert 1 <= memory.min() < 1.5 and 36 < memory.max() <= 30 + ASKED - 1
    for name, weight in plain.named_parameters():
        same = dict(chrono.named_parameters())[name] == weight
        if "bias" in name and "gru" in name:
            assert not same[gate].any()
            same[gate] = True
        assert same.all(), name


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match="must hold uniform or chrono alone, not 'cronho'"):
        Online(starts=("uniform", "cronho"))
