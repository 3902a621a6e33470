"""The page of HTML: scales and marks by hand, tables, what is told without a script, and that it is inert."""

import json
import math

import pytest
from inert_pages import Reader, read, what_acts_on
from repository import ROOT
from rich.console import Console

from loopgrad.analysis import plots
from loopgrad.experiments.reports import sweep
from loopgrad.experiments.reports.html import (
    Bar,
    Cell,
    Chart,
    Charts,
    Code,
    Fold,
    Page,
    Point,
    Section,
    Series,
    Table,
    Text,
    document,
    number,
)
from loopgrad.experiments.reports.html.charts import drawn, thinned
from loopgrad.experiments.reports.html.recipe import LONGEST, configured
from loopgrad.experiments.reports.html.scales import Scale, ticks, told

CHART = Chart("Learning", "By hand.", "step", "exact", [Series("bptt", [Point(0, 0), Point(10, 5, 4, 6)])])


def page(*parts, title="A title", **values):
    return Page("kind", title, ["A lead."], [("seeds", "0, 1")], [Section("one", "One", parts)], **values)


@pytest.mark.parametrize(
    ("values", "log", "expected"),
    [
        ([0, 100], False, (0, 20, 40, 60, 80, 100)),
        ([98.2, 99.9], False, (98, 98.5, 99, 99.5, 100)),
        ([-3, 7], False, (-4, -2, 0, 2, 4, 6, 8)),
        ([5, 5], False, (2, 3, 4, 5, 6, 7, 8)),
        ([0, 0], False, (-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6)),
        ([0.02, 300], True, (0.01, 0.1, 1, 10, 100, 1000)),
        ([2, 8], True, (1, 2, 5, 10)),
        ([1e-12, 1], True, (1e-12, 1e-9, 1e-6, 1e-3, 1)),
        ([7, 7], True, (1, 2, 5, 10)),
    ],
)
def test_ticks_are_round_and_enclose_the_values(values, log, expected):
    scale = Scale.of(values, log)
    assert scale.ticks == pytest.approx(expected)
    assert scale.low <= min(values) <= max(values) <= scale.high
    assert scale.at(scale.low) == 0 and scale.at(scale.high) == pytest.approx(1)


def test_a_place_on_a_scale_is_by_value_or_by_powers():
    assert Scale.of([0, 10], False).at(2.5) == 0.25
    log = Scale.of([1e-4, 1], True)
    assert log.at(1e-2) == pytest.approx(0.5) and log.at(0) == 0 and log.at(-1) == 0
    assert [text for _, text in ticks(log)] == ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "10⁰"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.85, "0.85"), (12345.678, "12346"), (1e-6, "10⁻⁶"), (2.5e-7, "2.5×10⁻⁷"), (-3e9, "-3×10⁹")],
)
def test_a_number_is_told_in_four_digits(value, text):
    assert told(value) == text


def test_marks_lie_where_their_values_are():
    drawing = drawn(CHART)
    (line,) = drawing.series
    left, top, right, bottom = drawing.box
    assert [(mark.x, mark.y) for mark in line.marks] == [(left, bottom), (right, bottom - (bottom - top) * 5 / 6)]
    assert line.marks[1].whisker == (bottom - (bottom - top) * 4 / 6, top)
    assert line.path == f"M{left},{bottom}L{right},{line.marks[1].y:g}"
    assert line.marks[1].title == "bptt: exact 5 (4 to 6) at step 10"
    assert drawing.numbers == [("bptt", "", "0", "0"), ("bptt", "", "10", "5 (4 to 6)")]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e301, None])
def test_what_is_no_number_has_no_mark(value):
    drawing = drawn(Chart("t", "", "x", "y", [Series("a", [Point(1, value), Point(2, 3, value, 4)])]))
    assert [(mark.title, mark.whisker) for mark in drawing.series[0].marks] == [("a: y 3 at x 2", None)]
    assert drawn(Chart("t", "", "x", "y", [Series("a", [Point(value, 1)])])).series == []
    assert read(document(page(Charts([Chart("t", "", "x", "y", [])])))).seen.get("svg", 0) == 0


def test_numbers_far_apart_are_drawn():
    for log in (False, True):
        points = [Point(x, y) for x in (-1e299, 1e-320, 1e299) for y in (-1e299, 0, 1e-320, 1e299)]
        (line,) = drawn(Chart("t", "", "x", "y", [Series("a", points)], log_x=log, log_y=log, lines=False)).series
        assert all(0 <= mark.x <= 560 and 0 <= mark.y <= 320 for mark in line.marks)


def test_long_curves_are_means_of_points_in_a_row():
    points = [Point(i, 2 * i) for i in range(1000)]
    found = thinned(points)
    assert len(found) == 100 and found[0] == Point(4.5, 9) and thinned(points[:100]) == points[:100]


@pytest.mark.parametrize(
    ("text", "value"),
    [("98.8 (98.6-99.0)", 98.8), ("1,234", 1234), ("-", None), ("2.2e-07", 2.2e-7), ("+0.5", 0.5), ("3 of 4", 3)],
)
def test_a_cell_is_sorted_by_the_number_that_it_begins_with(text, value):
    assert number(text).value == value


class Words(Reader):
    """The words of a page beside those of style and script."""

    words = ""

    def handle_data(self, data):
        super().handle_data(data)
        if self.open and self.open[-1] not in ("style", "script"):
            self.words += data


def test_all_is_told_without_a_script():
    table = Table("Two rows", ["name", "n"], [[Cell("a"), Cell("1", 1)], [Cell("b"), Cell("2.50", 2.5)]])
    parts = [Text("Words."), table, Charts([CHART]), Code("command", "loopgrad x"), Fold("more", [Text("Inner.")])]
    made = document(page(*parts))
    words = Words()
    words.feed(made.decode())
    for word in (
        "A title",
        "A lead.",
        "0, 1",
        "Words.",
        "Two rows",
        "2.50",
        "By hand.",
        "loopgrad x",
        "more",
        "Inner.",
    ):
        assert word in words.words
    assert "bptt: exact 5 (4 to 6) at step 10" in words.words and made.count(b"data-v=") == 1
    assert what_acts_on(made) == [] and document(page(*parts)) == made


def test_a_bar_has_its_parts_side_by_side_and_says_them():
    cell = Cell("1 a, 3 b", bars=[Bar(0.25, 0, "1 a"), Bar(0.75, 1, "3 b")])
    made = document(page(Table("t", ["x", "y"], [[Cell("r"), cell]], ["a", "b"]))).decode()
    assert '<rect x="0.0" width="25.0" height="10" class="f0"><title>1 a</title></rect><rect x="25.0"' in made
    assert 'aria-label="1 a, 3 b"' in made and what_acts_on(made.encode()) == []


@pytest.mark.parametrize(
    "planted",
    [
        b"<script>alert(1)</script>",
        b"<img src=x onerror=alert(1)>",
        b'<p onclick="alert(1)">x</p>',
        b'<a href="javascript:alert(1)">x</a>',
        b'<a href="//evil.example">x</a>',
        b'<p style="color:red">x</p>',
        b"<style>p{}</style>",
        b"<!-- x -->",
        b"</section>",
        b"<div>",
        b"<svg><use></use></svg>",
        b'<rect x="1" x="2"></rect>',
        b"\xe2\x80\xae",
        b"<meta http-equiv='refresh' content='0'><meta name=x content=\"default-src *\">",
    ],
)
def test_what_is_planted_in_a_page_is_found(planted):
    made = document(page(Text("Words.")))
    assert what_acts_on(made) == []
    assert what_acts_on(made.replace(b"Words.", planted)) != []


def test_the_hashes_of_the_policy_are_those_of_style_and_script():
    made = document(page())
    assert what_acts_on(made.replace(b'"use strict"', b'"use_strict"')) != []
    assert what_acts_on(made.replace(b"form-action &#39;none&#39;", b"form-action *")) != []


def test_a_configuration_longer_than_any_of_ours_is_cut_off():
    assert json.loads(configured({"a": [1, "x"]})) == {"a": [1, "x"]}
    assert len(configured({"a": "x" * 2 * LONGEST})) < LONGEST + 100


@pytest.mark.slow
def test_the_example_that_the_site_renders_is_inert_and_small(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "rendered", lambda drawn: {})
    published = ROOT / "docs/results/shortcuts"
    for job in "01":
        (tmp_path / job).mkdir()
        (tmp_path / job / "records.jsonl").write_bytes((published / job / "records.jsonl").read_bytes())
    sweep.render(tmp_path, Console(quiet=True))
    made = (tmp_path / "report.html").read_bytes()
    assert what_acts_on(made) == [] and len(made) < 500_000
