"""loopgrad analyse: its records against a recursion followed by hand, official weights, what it refuses, going on."""

import io
import json
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from loopgrad.analysis.verdicts import LABELS
from loopgrad.experiments import cli, records
from loopgrad.experiments.deltas import jobs
from loopgrad.experiments.deltas.examination import Examination, meet
from loopgrad.experiments.deltas.weights import find
from loopgrad.experiments.processes import Ending

DRAWN = (
    "analysis.samples=6",
    "analysis.gradient_samples=6",
    "analysis.radius_samples=1",
    "analysis.spectrum_samples=1",
    "analysis.exponent_samples=1",
    "analysis.exponent_cycles=10",
    "analysis.search_samples=0",
    "workers=1",
)
QUICK = (*DRAWN, "figures=0")
BARE = (*QUICK, *(f"analysis.{name}_samples=0" for name in ("spectrum", "exponent", "gradient")))  # verdicts alone
FIXTURES = Path(__file__).parents[2] / "models" / "fixtures"


@pytest.fixture(scope="module")
def run(compared):
    return compared / "runs" / "last_cycle-seed0"


@pytest.fixture(scope="module")
def examined(run, tmp_path_factory):
    """The folder of an analysis of one run with its figures, and what was printed; made once."""
    folder = tmp_path_factory.mktemp("examined") / "out"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", ["loopgrad", "analyse", f"checkpoint={run}", f"output_dir={folder}", *DRAWN])
        cli.main()
    return folder, printed.getvalue()


@pytest.fixture
def here(monkeypatch):
    """Examine in this process: a new one takes seconds to start, as `examined` has shown."""

    def completed(fn, todo, *_, **__):
        for job in todo:
            fn(job)
            yield Ending(job)

    monkeypatch.setattr(jobs, "completed", completed)


def some_of(compared, folder, *names):
    """Copy a comparison with these runs alone: each set of weights takes a second or two."""

    def others(place, found):
        return set(found) - set(names) if Path(place).name == "runs" else ()

    shutil.copytree(compared, folder, ignore=others)


def by_hand(run, cycles, samples=6):
    """The recursion from nothing but the model's own parts: float32 states, a last cycle in float64, its scale."""
    (weights,) = find(run / "weights.safetensors", {}, {}, None)
    task = weights.make_task()
    model, batch = weights.load(task), task.test_set()[:samples]
    with torch.no_grad():
        x, state = model.encode(batch.inputs), model.initial_state(*batch.inputs.shape)
        norms = [[z.flatten(1).norm(dim=1).numpy() for z in state.values()]]
        for step in range(3 * cycles):
            state = model.cell(state, x, step)
            norms.append([z.flatten(1).norm(dim=1).numpy() for z in state.values()])
        solved = task.is_solved(batch.inputs, model.readout(state)[0].argmax(-1)).numpy()
        before = after = {name: z.double() for name, z in state.items()}
        model, x = model.double(), x.double()
        for step in range(3):
            after = model.cell(after, x, step)
    moved = np.stack([(after[name] - before[name]).flatten(1).norm(dim=1).numpy() for name in before])
    return moved / np.quantile(np.array(norms), 0.9, axis=0), solved


@pytest.mark.slow
def test_residuals_and_outcomes_are_those_of_the_recursion_followed_by_hand(run, examined):
    folder, printed = examined
    (record,) = records.read(folder / "records.jsonl")
    assert [depth["cycles"] for depth in record["depths"]] == [8, 32]  # 4 segments of 2 cycles, and 4 times that
    for depth in record["depths"]:
        relative, solved = by_hand(run, depth["cycles"])
        assert depth["solved"] == solved.astype(int).tolist()
        for row, stream in zip(relative, ("z_L", "z_H"), strict=True):
            expected = np.quantile(row, [0.05, 0.5, 0.95])
            np.testing.assert_allclose(depth["streams"][stream]["reevaluated"]["all"], expected, rtol=1e-4)
    labels = record["depths"][0]["streams"]["joint"]["labels"]
    assert {LABELS[index] for index in labels} == {"too short"}  # a tail of 4 cycles judges nothing
    assert "z_L: 0 of 6 samples converged [0.0-39.0 %] after 8 cycles, the depth of training" in printed


@pytest.mark.slow
def test_a_folder_is_all_its_weights(loopgrad, compared, tmp_path):
    some_of(compared, tmp_path / "mine", *(f"{name}-seed{seed}" for name in ("bptt", "one_step") for seed in (0, 1)))
    result = loopgrad("analyse", "checkpoint=mine", "steps=-1", "output_dir=out", *BARE)
    assert result.code == 0, result.err
    found = records.read(tmp_path / "out" / "records.jsonl")
    assert [(r["estimator"], r["seed"], r["step"]) for r in found] == [
        (name, seed, 4) for name in ("bptt", "one_step") for seed in (0, 1)
    ]


@pytest.mark.slow
def test_the_report_is_of_records_alone(loopgrad, examined, tmp_path):
    shutil.copytree(examined[0], tmp_path / "out")
    (record,) = records.read(tmp_path / "out" / "records.jsonl")
    assert {gap["estimator"] for gap in record["gaps"]} == {"one_step", "last_cycle", "implicit_ungated"}
    report = (tmp_path / "out" / "report.md").read_bytes()
    shutil.rmtree(tmp_path / "out" / "weights")
    assert loopgrad("report", "output_dir=out").code == 0
    assert (tmp_path / "out" / "report.md").read_bytes() == report


@pytest.mark.slow
def test_it_goes_on_with_what_is_left_and_examines_changed_weights_anew(loopgrad, compared, tmp_path, monkeypatch):
    some_of(compared, tmp_path / "mine", "bptt-seed0", "bptt-seed1", "one_step-seed0")
    command = ("analyse", "checkpoint=mine", "output_dir=out", *BARE)
    did, most = [], 1

    def in_this_process(fn, todo, *_, **__):
        for job in todo:
            if len(did) == most:
                raise KeyboardInterrupt
            did.append(job.weights.name)
            fn(job)
            yield Ending(job)

    monkeypatch.setattr(jobs, "completed", in_this_process)
    assert loopgrad(*command).code == 130
    assert not (tmp_path / "out" / "records.jsonl").exists()
    most = 99
    assert loopgrad(*command).code == 0
    assert len(did) == len(set(did)) == 3
    one, other = (tmp_path / "mine" / "runs" / f"bptt-seed{i}" / "weights.safetensors" for i in (0, 1))
    shutil.copy(other, one)
    assert loopgrad(*command).code == 0
    assert did[3:] == [did[0]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "class_name"),
    [
        ("trm_mlp", "TRM"),
        *(pytest.param(*it, marks=pytest.mark.slow) for it in (("trm_attention", "TRM"), ("hrm", "HRM"))),
    ],
)
def test_official_weights_are_read_with_the_configuration_beside_them(loopgrad, here, tmp_path, name, class_name):
    with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
        tensors = {k[7:]: file.get_tensor(k) for k in file.keys() if k.startswith("weight.")}  # noqa: SIM118
    torch.save({f"_orig_mod.model.{key}": tensor for key, tensor in tensors.items()}, tmp_path / "step_12")
    arch = "{num_heads: 2, H_cycles: 3, L_cycles: 2, halt_max_steps: 5, puzzle_emb_len: 0, forward_dtype: bfloat16}"
    (tmp_path / "all_config.yaml").write_text(f"arch: {arch}\n")
    task = ("task=rolling_sum", "task.length=6", "task.modulus=5", "task.num_test=6")
    wrong = loopgrad("analyse", "checkpoint=step_12", *task, "output_dir=no", "official.H_cycles=two")
    assert wrong.code == 2 and "does not hold weights" in wrong.err and not (tmp_path / "no").exists()
    result = loopgrad("analyse", "checkpoint=step_12", *task, "output_dir=out", "official.max_segments=4", *QUICK)
    assert result.code == 0, result.err
    (record,) = records.read(tmp_path / "out" / "records.jsonl")
    assert (record["cycles_per_segment"], record["segments"], record["period"]) == (3, 4, 3)
    assert record["dtype"] == {"z_L": "bfloat16", "z_H": "bfloat16"} and 1e-4 < record["depths"][0]["floor"] < 0.1
    given = {"task": {"_target_": "loopgrad.experiments.tasks.RollingSum", "length": 6}}
    (weights,) = find(tmp_path / "step_12", given, {}, None)
    subject = meet(weights, Examination(samples=2))
    assert type(subject.model).__name__ == class_name and subject.trainer.halting.max_segments == 5
    assert torch.equal(subject.model.lm_head.weight, tensors["inner.lm_head.weight"])


@pytest.mark.slow
def test_a_stored_record_of_another_kind_is_examined_anew(loopgrad, here, run, examined, tmp_path):
    shutil.copytree(examined[0], tmp_path / "out")
    (tmp_path / "out" / "records.jsonl").unlink()
    (stored,) = (tmp_path / "out" / "weights").iterdir()
    record = json.loads(stored.read_text())
    record["depths"][0]["solved"] = ["no"]
    stored.write_text(json.dumps(record))
    assert loopgrad("analyse", f"checkpoint={run}", "output_dir=out", *DRAWN).code == 0
    assert records.read(stored)[0]["depths"][0]["solved"] != ["no"]


@pytest.mark.slow
def test_weights_without_a_run_need_task_and_model(loopgrad, here, run, tmp_path, refused):
    shutil.copy(run / "weights.safetensors", tmp_path / "alone.safetensors")
    assert "give task=" in refused("analyse", "checkpoint=alone.safetensors")
    assert "give model=" in refused("analyse", "checkpoint=alone.safetensors", "task=sudoku4")
    sizes = ("task=sudoku4", "model=trm", "model.hidden_size=16", "model.num_heads=2")
    assert loopgrad("analyse", "checkpoint=alone.safetensors", *sizes, "output_dir=out", *BARE).code == 0
    wrong = refused("analyse", "checkpoint=alone.safetensors", "task=sudoku4", "model=trm")
    assert "does not hold weights of this model and task" in wrong


def test_what_cannot_be_examined_is_refused(run, compared, refused, tmp_path):
    assert "name a file of weights" in refused("analyse")
    assert "no such file" in refused("analyse", "checkpoint=nowhere")
    assert "keeps no weights of step [3]" in refused("analyse", f"checkpoint={run}", "steps=[3]")
    assert "samples=0 must be at least 1" in refused("analyse", f"checkpoint={run}", "analysis.samples=0")
    assert "official.num_heads" in refused("analyse", f"checkpoint={run}", "official.nun_heads=3")
    (tmp_path / "text.pt").write_text("no weights")
    assert "workers=0" in refused("analyse", f"checkpoint={run}", "workers=0")
    assert "cannot be read" in refused("analyse", "checkpoint=text.pt", "task=sudoku4", "model=trm")
    assert "does not hold weights" in refused("analyse", f"checkpoint={run}", "task=sudoku6")


@pytest.mark.slow
def test_another_configuration_keeps_its_results(loopgrad, run, examined, tmp_path):
    shutil.copytree(examined[0], tmp_path / "out")
    before = (tmp_path / "out" / "records.jsonl").read_bytes()
    other = loopgrad("analyse", f"checkpoint={run}", "output_dir=out", *DRAWN, "analysis.rtol=0.01")
    assert other.code == 2 and "analysis.rtol: 0.001 -> 0.01" in other.err
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == before
    assert json.loads(before.splitlines()[0])["config"]["analysis"]["rtol"] == 0.001


@pytest.mark.slow
def test_memory_follows_its_law_and_figures_have_captions(examined):
    folder, _ = examined
    (path,) = (folder / "figures").glob("*-memory.json")
    rows = json.loads(path.read_text())
    measured = {(r["estimator"], r["updates"]): r["bytes"] for r in rows if r["kind"] == "measured"}
    predicted = {(r["estimator"], r["updates"]): r["bytes"] for r in rows if r["kind"] == "predicted"}
    for updates in (6, 12, 24, 48):
        assert measured["bptt", updates] == predicted["bptt", updates] == updates / 6 * measured["bptt", 6]
        assert measured["last cycle", updates] == predicted["last cycle", updates]
    report = (folder / "report.md").read_text()
    for name in ("residuals", "heatmap", "trajectories", "recurrence", "eigenvalues", "memory", "verdicts-training"):
        assert f"-{name}.png" in report or f"/{name}.png" in report
