"""loopgrad analyse with verdicts per position: beside a recursion recorded by hand, in records and report."""

import dataclasses
import json
import shutil

import pytest
import torch

from loopgrad.analysis import Thresholds, classify, record
from loopgrad.analysis.verdicts import LABELS
from loopgrad.experiments import records
from loopgrad.experiments.deltas import measuring
from loopgrad.experiments.deltas.examination import Examination, meet
from loopgrad.experiments.deltas.weights import find
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.reports.conditions import check_together, conditions
from loopgrad.experiments.reports.positions import by_position
from loopgrad.models import RecursiveModel

NONE = {f"{name}_samples": 0 for name in ("spectrum", "exponent", "gradient", "search")}
BARE = ("analysis.samples=6", "figures=0", "workers=1", *(f"analysis.{name}=0" for name in NONE))
SETTINGS = Examination(samples=6, segments=8, extrapolate=1, **NONE)


@pytest.fixture(scope="module")
def weights(compared):
    (found,) = find(compared / "runs" / "last_cycle-seed0" / "weights.safetensors", {}, {}, None)
    return found


@pytest.fixture(scope="module")
def seen(weights):
    """One set of weights examined per sample, and per position."""
    found = {}
    for per in (None, "position"):
        settings = dataclasses.replace(SETTINGS, per=per)
        found[per] = measuring.examine(meet(weights, settings), settings, {})
    return found


def test_a_record_has_the_verdict_of_every_position_and_those_of_samples_as_before(seen):
    depths = [dict(depth) for depth in seen["position"].record["depths"]]
    for depth in depths:
        records.schema.check(depth, records.kinds.DepthRecord)
        assert depth.pop("positions").keys() == {"z_L", "z_H", "joint"}
    assert {**seen["position"].record, "depths": depths} == seen[None].record


def test_the_digits_are_the_labels_of_a_trace_per_position(weights, seen):
    subject, depth = meet(weights, SETTINGS), seen["position"].depths[0]
    options = {"lags": 16, "per": "position", "reevaluate": torch.float64}
    trace = record(subject.cell, subject.state, subject.x, depth.trace.num_steps, **options)
    alone = classify(trace, Thresholds(), floor=depth.verdicts["joint"].floor)
    for stream, digits in seen["position"].record["depths"][0]["positions"].items():
        labels = [[LABELS[int(digit)] for digit in text] for text in digits]
        assert labels == alone[stream].by_position().label.tolist()
        assert len(labels) == 6 and len(labels[0]) == subject.state["z_H"].shape[1]


def of(labels, solved, positions):
    """A record made by hand."""
    quantiles = {"all": [0.1, 0.2, 0.3]}
    sweep = {"1.0": {}}
    stream = {"labels": labels, "residual": quantiles, "reevaluated": None, "rate": quantiles, "sweep": sweep}
    depth = {"cycles": 16, "solved": solved, "streams": {"joint": stream}}
    more = {} if positions is None else {"positions": {"joint": positions}}
    shared = {"group": "g", "estimator": "e", "seed": 0, "step": 1, "samples": len(labels)}
    return {**shared, "depths": [{**depth, **more}, {**depth, **more}]}


def test_the_section_counts_positions_by_outcome_and_mixed_samples():
    first = of([0, 4], [1, 0], ["0003", "4444"])
    lines = by_position(conditions([first, {**of([0, 0], [1, 1], ["0000", "0033"]), "seed": 1}]))
    assert lines[0] == "## By position"
    cells = "16 (4 a sample) | 75.0 | 0.0 | 18.8 cycle, 25.0 orbit | 2 of 4"
    assert lines[-3:] == [f"| g/e@1 | training depth | {cells} |", f"| g/e@1 | extrapolated | {cells} |", ""]
    assert by_position(conditions([of([0], [1], None)])) == []


@pytest.mark.parametrize(
    "positions",
    [["0003"], ["0003", "44"], [], ["0003", "4444", "0000"]],
    ids=["a sample less", "ragged", "none", "a sample more"],
)
def test_records_that_do_not_hold_together_are_refused(positions):
    with pytest.raises(ValueError, match="record 1 has not as many verdicts of positions"):
        check_together([of([0, 4], [1, 0], positions)])
    check_together([of([0, 4], [1, 0], ["0003", "4444"])])


@pytest.mark.parametrize("text", ["", "a", "00-1", 3, "0" * 100_001], ids=["empty", "letter", "sign", "number", "long"])
def test_what_is_no_verdict_is_refused_in_a_file(text):
    depth = {**of([0], [1], [text])["depths"][0], "name": "training", "updates": 48, "floor": None, "thresholds": {}}
    with pytest.raises(records.schema.Mismatch, match=r"positions\.joint\[0\]|\[0\]"):
        records.schema.check(depth, records.kinds.DepthRecord)


@pytest.mark.slow
def test_the_command_takes_it_reports_it_and_goes_on_in_an_older_folder(loopgrad, compared, tmp_path):
    shutil.copytree(compared / "runs" / "last_cycle-seed0", tmp_path / "run")
    command = ("analyse", "checkpoint=run/weights.safetensors", "output_dir=out", *BARE)
    assert loopgrad(*command).code == 0
    plain = (tmp_path / "out" / "report.md").read_bytes()
    (stored,) = records.read(tmp_path / "out" / "config.json")
    assert stored["analysis"].pop("per") is None and b"By position" not in plain
    (tmp_path / "out" / "config.json").write_text(json.dumps(stored))  # as it was written before there was the key
    assert loopgrad(*command).code == 0
    assert (tmp_path / "out" / "report.md").read_bytes() == plain
    result = loopgrad(*command, "analysis.per=position")
    assert result.code and "analysis.per: None -> position" in result.err
    assert loopgrad(*command, "analysis.per=position", "restart=true").code == 0
    assert "## By position" in (tmp_path / "out" / "report.md").read_text()


def test_a_folder_of_before_there_was_the_key_is_that_of_samples():
    before = {"analysis": {"samples": 6}}
    assert records.differences(before, {"analysis": {"samples": 6, "per": Examination().per}}) == []


def test_what_cannot_be_is_refused_before_anything_is_made(weights, monkeypatch, refused):
    assert "analysis.per=token: no such choice" in refused("analyse", "checkpoint=x", "analysis.per=token")
    state = {"z_H": torch.zeros(6, 5, 4), "h": torch.zeros(6, 4)}
    monkeypatch.setattr(RecursiveModel, "initial_state", lambda *_: state)
    with pytest.raises(ConfigError, match=r"analysis.per=position: stream h of shape \(6, 4\) has no position"):
        meet(weights, dataclasses.replace(SETTINGS, per="position"))
    assert meet(weights, SETTINGS).state is state
