"""A report is written whole: its page and all its figures, or nothing of it."""

import json

import pytest
from repository import ROOT
from rich.console import Console

from loopgrad.analysis import files, plots
from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.reports import comparison, deltas

pytest.importorskip("matplotlib")


def folder_with(place, name, count, **values):
    found = [it | values for it in records.read(ROOT / "docs/results" / name / "records.jsonl")[:count]]
    records.write(place / "records.jsonl", found)


def render(folder, module):
    with open(folder.parent / "out.txt", "w") as out:
        module.render(folder, Console(file=out, width=200))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(plots, "rendered", lambda drawn: {"png": b"new"})


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, quick, failing):
    folder = tmp_path / "results"
    folder_with(folder, "shortcuts/0", 2)
    for name in ("report.md", "report.html", "comparison.png"):
        (folder / name).write_text("old")
    before, calls = contents(folder), []

    def full(*_):
        calls.append(1)
        if failing == "replace" or len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        render(folder, comparison)
    assert contents(folder) == before


def test_figures_that_cannot_be_drawn_leave_the_old_report(tmp_path, monkeypatch, quick):
    folder = tmp_path / "results"
    folder_with(folder, "shortcuts/0", 2)
    (folder / "report.md").write_text("old")
    before = contents(folder)
    monkeypatch.setattr(plots, "residuals_by_estimator", lambda *_: 1 / 0)
    with pytest.raises(ConfigError, match="no report can be made of these records: ZeroDivisionError"):
        render(folder, comparison)
    assert contents(folder) == before


def test_more_estimators_than_can_be_told_apart_are_not_drawn(tmp_path, quick):
    folder = tmp_path / "results"
    folder_with(folder, "shortcuts/0", 1)
    one = records.read(folder / "records.jsonl")[0]
    records.write(folder / "records.jsonl", [one | {"estimator": f"e{i}"} for i in range(41)])
    render(folder, comparison)
    assert "41 estimators cannot be told apart" in (tmp_path / "out.txt").read_text()
    assert "e40" in (folder / "report.md").read_text() and not list(folder.glob("*.png"))


@pytest.mark.parametrize(
    "figure", ["../x.png", "/x.png", "figures/../x.png", "figures/a\\b.png", "x.png", "figures/x.svg", "figures/"]
)
def test_a_figure_elsewhere_is_refused(tmp_path, quick, figure):
    folder = tmp_path / "results"
    folder_with(folder, "deltas", 1, figures=["figures/a-heatmap.png", figure])
    with pytest.raises(ConfigError, match=r"figures\[1\] cannot be .*must be the path of a PNG in figures/"):
        render(folder, deltas)
    assert list(folder.iterdir()) == [folder / "records.jsonl"]


def test_figures_of_any_name_are_linked_and_unknown_ones_have_no_caption(tmp_path, quick):
    folder = tmp_path / "results"
    folder_with(folder, "deltas", 1, figures=["figures/a b)-heatmap.png", "figures/other.png"])
    render(folder, deltas)
    page = (folder / "report.md").read_text()
    assert "![a b)-heatmap](figures/a%20b%29-heatmap.png)\n\nRelative residual of a cycle" in page
    assert page.endswith("![other](figures/other.png)\n\n\n\n")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r["depths"][1]["solved"].pop(), "record 2 has not 128 samples everywhere"),
        (lambda r: r.update(samples=10**18), "record 2 has not 1000000000000000000 samples everywhere"),
        (lambda r: r["depths"][1]["streams"].pop("z_L"), "record 2 has other streams than one of the same group"),
        (lambda r: r["depths"][0]["streams"]["joint"]["sweep"].pop("3.0"), "verdicts at other thresholds"),
        (lambda r: r["spectrum"]["solved"].pop(), "samples in spectrum.radius and spectrum.solved"),
    ],
)
def test_records_that_contradict_each_other_are_refused_by_number(tmp_path, change, reason):
    folder_with(tmp_path / "results", "deltas", 2)
    path = tmp_path / "results" / "records.jsonl"
    found = records.read(path)
    change(found[1])
    path.write_text("\n".join(map(json.dumps, found)))
    with pytest.raises(ConfigError, match=reason):
        render(tmp_path / "results", deltas)
