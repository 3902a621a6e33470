"""The bench of families: exact rows are exact, who is beaten is told as counted by hand, the command draws."""

import pytest

from loopgrad.experiments import records
from loopgrad.experiments.benches.families import Families, beaten_by
from loopgrad.experiments.benches.families_words import words


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
    assert of["gru", "TruncatedBPTT(1)"]["error"] > 0.1 and ("gru", "ImplicitGradient") not in of


def row(name, error, peak, flops, by=""):
    return {"estimator": name, "error": error, "peak MiB": peak, "GFLOPs": flops, "beaten by": by}


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
    assert len(records.read(tmp_path / "out" / "families.json")[0]["rows"]) == 58
