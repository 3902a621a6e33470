"""The bench of an accelerator at tiny size: every part has its rows, and what is foreseen is what is measured."""

import json

import pytest
import torch

from loopgrad.analysis.counters import PeakBytes
from loopgrad.analysis.foreseen import foreseen
from loopgrad.experiments.benches.gpu import Accelerator
from loopgrad.experiments.benches.gpu.published import ESTIMATORS, Published, steps
from loopgrad.experiments.benches.gpu.sizes import TINY
from loopgrad.experiments.benches.gpu.stopwatch import Stopwatch

PARTS = ["machine", "exactness", "step", "large", "step", "peers", "training"]


def test_foreseen_bytes_and_flops_are_those_of_a_linear_layer():
    def make():
        return torch.nn.Linear(8, 16, bias=False), torch.zeros(4, 8)

    found = foreseen(make, lambda made: made[0](made[1]).tanh().sum().backward())
    assert found.flops == 2 * (2 * 4 * 8 * 16)  # the product, and that of the weight's gradient
    real = torch.nn.Linear(8, 16, bias=False), torch.zeros(4, 8)
    with PeakBytes() as peak:
        real[0](real[1]).tanh().sum().backward()
    assert found.bytes == peak.peak > 0


@pytest.mark.slow
@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", ["TruncatedBPTT, last cycle", "CheckpointedBPTT(1)", "BPTT"])
def test_what_is_foreseen_of_a_step_is_what_it_takes(name):
    watch = Stopwatch(torch.device("cpu"), 60)
    (row,) = steps(watch, TINY, Published("TRM", 16, 2, 2), [name], rate=1e9)
    assert row["foreseen GiB"] == pytest.approx(row["peak GiB"], rel=0.15) and row["floor"] > 0 < row["seconds"]


def test_no_time_is_a_row():
    watch = Stopwatch(torch.device("cpu"), -1)
    rows = list(steps(watch, TINY, Published("HRM", 16, 2, 2), list(ESTIMATORS), rate=1e9))
    assert [row["note"] for row in rows] == ["not measured: no time is left"] * len(ESTIMATORS)


@pytest.mark.parametrize(
    ("values", "words"),
    [({"size": "huge"}, "size=huge"), ({"training_seconds": 600}, "training_seconds=600 must be below seconds=520")],
)
def test_wrong_sizes_are_named(values, words):
    with pytest.raises(ValueError, match=words):
        Accelerator(**values)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's compiler
def test_a_tiny_run_has_every_part_and_records_it(loopgrad, tmp_path):
    result = loopgrad("bench", "gpu", "size=tiny", "device=cpu", "output_dir=out")
    assert result.code == 0, result.err
    (record,) = (json.loads(line) for line in (tmp_path / "out" / "gpu.json").read_text().splitlines())
    rows = record["rows"]
    parts = [row["part"] for row in rows]
    assert [part for i, part in enumerate(parts) if part != parts[i - 1] or not i] == PARTS
    assert "unfinished" not in record and len(result.out.splitlines()) > len(rows)
    exact = [row for row in rows if row["part"] == "exactness" and row["note"] is None]
    assert len(exact) == len([row for row in rows if row["part"] == "exactness"]) == 25
    for row in exact:  # autocast sums what weights get in another dtype than BPTT does: a few roundings of 2^-8
        assert row["error"] == 0 and row["bits"] if row["precision"] == "float32" else row["error"] < 0.02, row
    for row in rows:
        if row["part"] in ("step", "large") and row["note"] is None:
            assert row["seconds"] > 0 and (row["foreseen GiB"] is None or row["floor"] > 0)
    told = [row for row in rows if row["part"] == "training"]
    assert [row["curve"][-1][1] for row in told] == [2, 2, 2]
