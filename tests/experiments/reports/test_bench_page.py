"""The page of a bench: every published record has one, with the charts that its rows have room for."""

import json
import shutil

import pytest
from hostile_records import TEXTS
from inert_pages import what_acts_on
from repository import ROOT

from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.reports import bench_page
from loopgrad.experiments.reports.bench_page import charts

FOLDER = ROOT / "docs/results/bench"


def test_every_published_bench_has_a_page(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "bench")
    found = bench_page.of_folder(tmp_path / "bench")
    assert {path.name for path in found} == {
        path.name for path in FOLDER.glob("*.json") if not path.stem.endswith("-figure")
    }
    for path in found:
        made = bench_page.render(path)
        content = made.read_bytes()
        assert made == path.with_suffix(".html") and what_acts_on(content) == [] and len(content) < 400_000
        assert bench_page.render(path).read_bytes() == content


def test_measures_are_drawn_against_the_size_that_varies_most():
    rows = [{"updates": t, "method": m, "time": 1.0, "MiB": t * k} for t in (4, 8) for m, k in (("a", 1), ("b", 2))]
    (chart,) = charts(rows, list(rows[0]))
    assert (chart.title, chart.xlabel, chart.ylabel) == ("MiB", "updates", "MiB")
    told = {series.name: [(point.x, point.y) for point in series.points] for series in chart.series}
    assert told == {"a": [(4, 4), (8, 8)], "b": [(4, 8), (8, 16)]}
    assert charts(rows[:2], list(rows[0])) == []  # one size alone


def test_hostile_words_of_a_bench_are_inert_and_what_is_none_is_refused(tmp_path):
    (record,) = [json.loads(line) for line in (FOLDER / "recursion.json").read_text().splitlines()]
    path = tmp_path / "recursion.json"
    rows = [
        {"updates": i, "method": text, text or "x": i, "time": i / 2} for i, text in enumerate(TEXTS) if len(text) < 600
    ]
    path.write_text(json.dumps(record | {"rows": rows, "bench": {text: text for text in TEXTS}, "command": TEXTS[0]}))
    assert what_acts_on(bench_page.render(path).read_bytes()) == []
    for wrong in (record | {"rows": []}, record | {"rows": [{"a": {}}]}, {"rows": [{}]}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ConfigError, match="recursion.json"):
            bench_page.render(path)
