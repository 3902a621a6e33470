"""Tables, sentence and figures from records made by hand: every number that is shown can be worked out on paper."""

import copy
import math
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console

from loopgrad.analysis import plots
from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.reports import comparison as report
from loopgrad.experiments.reports import summary
from loopgrad.experiments.reports.summary import Spread, by_estimator, spread


def made(estimator="bptt", seed=0, **values):
    band = {"update_relative": [0.1, 0.2, 0.3], "map": [0.4, 0.5, 0.6], "map_relative": [0.01, 0.02, 0.04]}
    record = {
        "estimator": estimator, "task": "maze", "model": "trm", "seed": seed, "train_steps": 50, "loss": 0.25,
        "exact_accuracy": 0.5, "token_accuracy": 0.75, "seconds_per_step": 0.1, "time_ratio_to_bptt": 1.0,
        "saved_bytes": 4 * 2**20, "peak_bytes": 6 * 2**20, "cell_evaluations": 6, "vjps": 6, "flops": 3e9,
        "gradient_cosine": 1.0, "gradient_relative_error": 0.0, "kind": "exact", "train_seconds": 9.0,
        "residuals": {"at": 6, "levels": [0.05, 0.5, 0.95], "dtype": "float32", "z_L": band, "joint": dict(band)},
        "residual_curve": {"z_L": [0.5, 0.4], "joint": [0.5, None]},
        "curve": {"step": [25, 50], "exact_accuracy": [0.1, 0.5], "train_loss": [1.0] * 50},
        "probe": {"samples": 8, "segment": 2, "timing_repeats": 3}, "commit": "abc", "versions": {"torch": "2"},
        "device": "a machine", "date": "2026-01-01", "command": "loopgrad compare", "config": {},
    }  # fmt: skip
    return record | values


BIASED = {"kind": "biased", "saved_bytes": 2**20}
FOUR = [
    made(seed=0, exact_accuracy=0.25),
    made(seed=1, exact_accuracy=0.75),
    made(
        "one_step", 0, exact_accuracy=0.5, time_ratio_to_bptt=0.5, saved_bytes=2**20, gradient_cosine=0.8, kind="biased"
    ),
    made(
        "one_step", 1, exact_accuracy=1.0, time_ratio_to_bptt=0.7, saved_bytes=2**20, gradient_cosine=0.6, kind="biased"
    ),
]


def test_a_spread_is_mean_least_and_greatest_of_what_is_known():
    assert Spread.of([1.0, 4.0, None, 1.0]) == Spread(2.0, 1.0, 4.0)
    assert Spread.of([3]) == Spread(3, 3, 3)
    assert all(math.isnan(value) for value in vars(Spread.of([None])).values())


@pytest.mark.parametrize(
    ("values", "text"), [([0.25, 0.75], "50.0 (25.0-75.0)"), ([0.5], "50.0"), ([0.50001, 0.5], "50.0"), ([None], "-")]
)
def test_a_spread_shows_its_ends_only_where_they_differ(values, text):
    assert Spread.of(values).text(summary.percent) == text


def test_a_spread_follows_a_path_and_passes_over_what_is_missing():
    found = [made(), made(residuals={"joint": None}), made(residuals={})]
    assert spread(found, "residuals", "joint", "map_relative", 2) == Spread(0.04, 0.04, 0.04)


def test_records_are_grouped_by_estimator_in_their_order():
    mixed = [FOUR[2], FOUR[0], FOUR[3], FOUR[1]]
    assert {name: [r["seed"] for r in group] for name, group in by_estimator(mixed).items()} == {
        "one_step": [0, 1], "bptt": [0, 1]
    }  # fmt: skip
    assert list(by_estimator(mixed)) == ["one_step", "bptt"]


def test_the_table_holds_means_and_spreads_by_hand():
    header, rows = summary.table(FOUR)
    assert header[0] == "estimator" and [row[0] for row in rows] == ["bptt", "one_step"]
    first, second = ({title: cell for title, cell in zip(header, row, strict=True)} for row in rows)
    assert first["exact %"] == "50.0 (25.0-75.0)" and second["exact %"] == "75.0 (50.0-100.0)"
    assert first["saved MiB"] == "4.00" and first["peak MiB"] == "6.00" and first["GFLOPs"] == "3.00"
    assert second["cosine"] == "0.700 (0.600-0.800)" and second["time / BPTT"] == "0.60 (0.50-0.70)"
    assert first["residual"] == "0.02"


@pytest.mark.slow
def test_matches_have_a_column_only_where_samples_have_other_right_answers(tmp_path):
    told = [made(match_accuracy=0.25), made("one_step", match_accuracy=0.5)]
    header, rows = summary.table(told)
    assert header[:3] == ["estimator", "exact %", "match %"] and [row[2] for row in rows] == ["25.0", "50.0"]
    assert "match: held-out samples equal to their label" in render(tmp_path, told)
    for same in ([made(match_accuracy=0.5)], FOUR, [made(match_accuracy=None)]):
        assert "match %" not in summary.table(same)[0] and "match:" not in render(tmp_path, same)
    assert [row[2] for row in summary.table([told[0], made("one_step")])[1]] == ["25.0", "-"]


def test_the_sentence_says_what_each_gave_and_cost():
    sentence = summary.reading(FOUR)
    assert sentence == (
        "After 50 steps of trm on maze (2 seeds), BPTT solves 50.0 % of the held-out samples exactly; "
        "one_step 75.0 % at 0.60x BPTT's time and 0.25x its saved bytes with gradient cosine 0.70."
    )
    assert "one seed, so without a spread" in summary.reading([FOUR[0], FOUR[2]])
    assert "with the same gradient" in summary.reading([made(), made("checkpointed")])
    assert "saved bytes" not in summary.reading(FOUR[2:])  # nothing to compare with


def render(folder, found):
    records.write(folder / "records.jsonl", found)
    with open(folder / "out.txt", "w") as out:
        report.render(folder, Console(file=out, width=200))
    return (folder / "report.md").read_text()


def test_the_report_shows_the_sentence_the_table_and_how_it_was_made(tmp_path):
    text = render(tmp_path, FOUR)
    assert summary.reading(FOUR) in text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == summary.table(FOUR)[0] and rows[2:4] == summary.table(FOUR)[1]
    assert ["one_step", "z_L", "0.2 (0.1-0.3)", "0.02 (0.01-0.04)"] in rows
    for word in ("`loopgrad compare`", "abc", "a machine", "2026-01-01", "torch 2", "seeds: 0, 1"):
        assert word in text
    assert summary.reading(FOUR) in (tmp_path / "out.txt").read_text()


@pytest.mark.slow
def test_the_same_records_give_the_same_bytes(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        render(tmp_path / name, FOUR)
    made_files = sorted(path.name for path in (tmp_path / "a").iterdir() if path.name != "out.txt")
    assert {"comparison.png", "comparison.svg", "residuals.png", "residuals.svg", "report.md", "report.html"} <= set(
        made_files
    )
    for name in made_files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    for name in ("comparison", "residuals"):
        assert (tmp_path / "a" / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        words = "".join(ElementTree.parse(tmp_path / "a" / f"{name}.svg").getroot().itertext())
        assert "bptt" in words and "one_step" in words


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "values",
    [
        {"residual_curve": {"z_H": [None]}, "residuals": {"at": 1, "z_H": {"map": [0, 0, 0]}}},
        {"residual_curve": {"z_L": [0.0, 0.0]}},
        {"gradient_cosine": None, "time_ratio_to_bptt": None, "exact_accuracy": None, "loss": None},
        {"saved_bytes": 0},
    ],
)
def test_records_with_gaps_are_rendered_without_a_warning(tmp_path, values):
    assert "# trm on maze" in render(tmp_path, [made(**values), made("one_step", **values)])


def damaged(change):
    found = copy.deepcopy(FOUR)
    change(found[1])
    return found


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r.pop("exact_accuracy"), "line 2: the record lacks exact_accuracy"),
        (lambda r: r.pop("residual_curve"), "line 2: the record lacks residual_curve"),
        (lambda r: r.update(loss="low"), 'line 2: loss cannot be "low"'),
        (lambda r: r.update(curve={"step": []}), "exact_accuracy"),
        (lambda r: r.update(curve={"step": [1], "exact_accuracy": [0.1], "train_loss": []}), ""),
        (lambda r: r.update(residual_curve={}), "streams"),
    ],
)
def test_records_that_are_not_those_of_a_comparison_are_refused_in_one_line(tmp_path, change, reason):
    pytest.importorskip("matplotlib")
    with pytest.raises(ConfigError) as caught:
        render(tmp_path, damaged(change))
    assert "records.jsonl" in str(caught.value) and reason in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "report.md").exists() and not (tmp_path / "report.html").exists()


def test_a_report_needs_no_matplotlib(tmp_path, monkeypatch):
    def missing(*_):
        raise ImportError("no matplotlib")

    monkeypatch.setattr(plots, "accuracy_and_cost", missing)
    text = render(tmp_path, FOUR)
    assert "comparison.png" not in text and "pip install" in (tmp_path / "out.txt").read_text()


@pytest.mark.parametrize("value", [0.1, 0.7, 0.9656])
def test_a_mean_lies_within_its_spread(value):
    found = Spread.of([value] * 3)
    assert found.low <= found.mean <= found.high
