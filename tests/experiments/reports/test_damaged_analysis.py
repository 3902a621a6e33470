"""A record of an analysis that somebody has damaged ends in one line, with nothing written."""

import copy

import pytest
from repository import ROOT
from rich.console import Console

from loopgrad.analysis import plots
from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.reports import deltas


@pytest.fixture(scope="module")
def whole():
    return records.read(ROOT / "docs/results/deltas/records.jsonl")[0]


def labels(record):
    return record["depths"][0]["streams"]["joint"]["labels"]


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(figures=None),
        lambda r: r.update(figures=[1]),
        lambda r: r.update(memory=None),
        lambda r: r.update(memory={"bptt": {"16": 3}}),
        lambda r: r.update(memory={"bptt": {"1": "x", "2": "y"}}),
        lambda r: r.update(spectrum=None),
        lambda r: r.update(saved_bytes={"a": 1}),
        lambda r: r["depths"].pop(),
        lambda r: labels(r).__setitem__(0, 1e308),
        lambda r: r["depths"][0].update(solved=None),
        lambda r: r["gaps"][0].pop("cosine"),
    ],
)
def test_a_damaged_record_ends_in_one_line(tmp_path, whole, change, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(plots, "rendered", lambda *_: {})  # what takes its time
    record, other = copy.deepcopy(whole), copy.deepcopy(whole) | {"estimator": "other", "name": "other"}
    change(record)
    records.write(tmp_path / "records.jsonl", [record, other])
    with open(tmp_path / "out.txt", "w") as out, pytest.raises(ConfigError) as caught:
        deltas.render(tmp_path, Console(file=out, width=200))
    assert "records.jsonl" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "report.md").exists()
