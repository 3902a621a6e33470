"""The bench of families: exact rows are exact, who is beaten is told as counted by hand, the command draws."""

import json

import pytest

from loopgrad.experiments import records
from loopgrad.experiments.benches import families
from loopgrad.experiments.benches.families import Families, beaten_by
from loopgrad.experiments.benches.families_words import words
from loopgrad.experiments.benches.family_cells import Problem
from loopgrad.experiments.benches.family_rows import CONTENDERS, Contender
from loopgrad.gradients import ParallelNewton
from loopgrad.gradients.parallel_newton import ParallelStats


@pytest.mark.slow
def test_exact_rows_are_exact_and_each_says_what_it_takes():
    rows = list(Families(size=8, batch_size=2, lengths=(3,), draws=1).rows())
    assert {row["cell"] for row in rows} == {"block", "gru", "equilibrium"}
    for row in rows:
        if row["kind"] == "exact":
            assert row["error"] < 1e-5, row
        assert row["peak MiB"] > 0 and row["depth"] >= 3, row
    of = {(row["cell"], row["estimator"]): row for row in rows}
    assert of["gru", "BPTT"]["depth"] == 6 and of["gru", "CheckpointedBPTT(1)"]["depth"] == 9
    assert of["gru", "TruncatedBPTT(1)"]["depth"] == 4 and of["gru", "LowRankES"]["depth"] == 3
    newton = of["gru", "ParallelNewton"]
    assert newton["depth"] % 3 == 1 and newton["depth"] > 7 and newton["note"] == "", "a scan of 3 updates has 2 levels"
    assert of["gru", "TruncatedBPTT(1)"]["error"] > 0.1 and ("gru", "ImplicitGradient") not in of


def row(name, error, peak, flops, by="", note=""):
    price = {"error": error, "peak MiB": peak, "GFLOPs": flops}
    return {"cell": "c", "updates": 8, "estimator": name, "beaten by": by, "note": note} | price


def test_updates_side_by_side_are_as_deep_as_their_scans():
    stats = ParallelStats(0, 0, iterations=5, levels=9)
    assert CONTENDERS["ParallelNewton"].depth(900, 900, stats) == 2 + 1 + 5 * 10 + 1 + 9 + 1
    stats.backward_iterations = 2
    assert CONTENDERS["ParallelNewton(diagonal)"].depth(900, 900, stats) == 2 + 1 + 5 * 10 + 1 + 3 * (9 + 1) + 1
    assert CONTENDERS["BPTT"].depth(8, 8, stats) == 16 and CONTENDERS["LowRankES"].depth(34, 0, stats) == 2
    assert not CONTENDERS["ParallelNewton"].fits(Problem("block", 8, 2, 512, 0))


@pytest.mark.slow
def test_a_row_whose_steps_ran_out_says_so_and_has_no_numbers(monkeypatch, tmp_path):
    lost = Contender(lambda seed: ParallelNewton(max_iterations=1))
    monkeypatch.setattr(families, "CONTENDERS", {"BPTT": CONTENDERS["BPTT"], "lost": lost})
    bench = Families(size=8, batch_size=2, lengths=(8,))
    rows = list(bench.rows())
    assert len(rows) == 6 and {tuple(row) for row in rows} == {tuple(rows[0])}
    for row in rows[1::2]:
        assert row["note"] == "its steps ran out" and row["error"] is None and row["beaten by"] == "", row
    assert "lost on gru, 8 updates: its steps ran out." in bench.text(rows).splitlines()
    assert "together: BPTT." in bench.text(rows)
    bench.figures(rows, tmp_path)
    drawn = json.loads((tmp_path / "families-figure.json").read_text())
    assert "lost" not in json.dumps(drawn)


def test_a_row_is_beaten_by_one_that_is_no_worse_in_all_and_better_in_one():
    exact, less, worse, same = row("a", 1e-7, 4, 1), row("b", 3e-8, 2, 2), row("c", 0.5, 4, 1), row("d", 5e-7, 4, 1)
    rows = [exact, less, worse, same]
    assert [beaten_by(it, rows) for it in rows] == ["", "", "a", ""]  # errors of the arithmetic are equal
    lost = row("e", float("nan"), 3, 3)
    assert beaten_by(lost, [*rows, lost]) == "b"


def test_the_words_count_settings():
    rows = [row("a", 0, 1, 1), row("a", 0, 1, 1), row("b", 1, 2, 1, "a"), row("b", 1, 1, 1), row("c", 1, 3, 3, "b")]
    assert words(rows).splitlines() == [
        "Beaten nowhere in error, peak bytes and FLOPs together: a.",
        "b is beaten in 1 of 2 settings, most often by a.",
        "c is beaten everywhere, most often by b.",
    ]


@pytest.mark.slow
def test_the_command_writes_record_page_and_figure(loopgrad, tmp_path):
    sizes = ("bench.size=8", "bench.batch_size=2", "bench.lengths=[2]", "bench.draws=1")
    result = loopgrad("bench", "families", *sizes, "output_dir=out")
    assert result.code == 0 and "Beaten nowhere" in result.out, result.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"families-figure.{kind}" for kind in ("svg", "png", "json")} | {"families.json", "families.html"}
    assert len(records.read(tmp_path / "out" / "families.json")[0]["rows"]) == 67
