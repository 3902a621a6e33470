"""Weights that have diverged get a report that says so, and diverged samples leave the report of the others whole."""

import copy
import shutil
import sys

import pytest
import torch
from repository import ROOT
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file

from loopgrad.analysis import plots
from loopgrad.analysis.verdicts import LABELS
from loopgrad.experiments import cli, records
from loopgrad.experiments.reports import deltas

FEW = (
    "analysis.samples=6",
    "analysis.gradient_samples=6",
    "analysis.radius_samples=1",
    "analysis.spectrum_samples=2",
    "analysis.exponent_samples=1",
    "analysis.exponent_cycles=10",
    "analysis.search_samples=2",
    "workers=1",
)


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), 1e36])
def test_weights_that_have_diverged_are_reported(compared, tmp_path, monkeypatch, value):
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(compared / "runs" / "last_cycle-seed0", run)
    with safe_open(run / "weights.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    spoilt = {name: torch.full_like(it, value) if it.is_floating_point() else it for name, it in tensors.items()}
    save_file(spoilt, run / "weights.safetensors")
    monkeypatch.setattr(sys, "argv", ["loopgrad", "analyse", f"checkpoint={run}", f"output_dir={out}", *FEW])
    cli.main()
    (record,) = records.read(out / "records.jsonl")
    assert record["spectrum"]["radius"] == [None, None]
    assert record["depths"][0]["streams"]["joint"]["labels"] == [LABELS.index("diverging")] * 6
    assert "2 not finite" in (out / "report.md").read_text()


@pytest.mark.slow
def test_numbers_that_are_not_finite_are_counted_beside_the_others(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(plots, "save", lambda *_: [])  # what takes its time
    record = copy.deepcopy(records.read(ROOT / "docs/results/deltas/records.jsonl")[0])
    solved = record["spectrum"]["solved"]
    record["spectrum"]["radius"][solved.index(True)] = None
    for gap in record["gaps"][:2]:
        gap |= dict.fromkeys(("residual_q50", "radius_q50", "cosine", "relative_error", "norm_ratio"))
    records.write(tmp_path / "records.jsonl", [record])
    with open(tmp_path / "out.txt", "w") as out:
        deltas.render(tmp_path, Console(file=out, width=200))
    assert ", 1 not finite" in (tmp_path / "report.md").read_text()
