"""Sweeps as a user types them: jobs through each launcher, one that fails, and one report of all."""

import csv
import json
import re
import subprocess
import sys

import pytest

LAUNCHERS = {
    "basic": (),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "submitit_local": ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"),
}


def run(folder, *arguments):
    command = [sys.executable, "-m", "loopgrad", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)


def table(folder):
    with open(folder / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_four_runs_end_with_one_report(tiny, tmp_path, launcher):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    swept = ("estimator=bptt,one_step", "trainer.learning_rate=0.001,0.002")
    command = ("train", "-m", *tiny, *swept, *LAUNCHERS[launcher], "output_dir=out")
    first = run(tmp_path, *command)
    assert first.returncode == 0, first.stderr
    assert "Traceback" not in first.stdout + first.stderr
    rows = table(tmp_path / "out")
    told = sorted((row["estimator"], row["trainer.learning_rate"]) for row in rows)
    assert told == [("bptt", "0.001"), ("bptt", "0.002"), ("one_step", "0.001"), ("one_step", "0.002")]
    for row in rows:  # each is the run that the command would make alone
        record = json.loads((tmp_path / "out" / row["job"] / "records.jsonl").read_text())
        assert float(row["loss"]) == record["loss"] and record["command"].startswith("loopgrad train -m")
    page = (tmp_path / "out" / "report.md").read_text()
    assert page.startswith("# A sweep of 4 jobs") and "joint report of 4 jobs is in out" in first.stdout
    if launcher == "basic":
        again = run(tmp_path, *command)
        assert again.returncode == 0 and again.stdout.count("holds this run already") == 4
        assert run(tmp_path, "report", "output_dir=out").returncode == 0
        assert (tmp_path / "out" / "report.md").read_text() == page


@pytest.mark.slow
def test_two_comparisons_end_with_a_sentence_each(tiny, tmp_path):
    swept = ("model=trm,trm_attention", "estimator=[bptt,one_step]", "output_dir=out")
    ended = run(tmp_path, "compare", "-m", *tiny, *swept)
    assert ended.returncode == 0, ended.stderr
    for number, model in enumerate(("trm", "trm_attention")):
        (record, _) = map(json.loads, (tmp_path / "out" / str(number) / "records.jsonl").read_text().splitlines())
        assert record["overrides"] == [*tiny, f"model={model}", "estimator=[bptt,one_step]", "output_dir=out"]
        assert (
            f"model={model}: after 4 steps of {model} on sudoku4 (one seed, so without a spread), BPTT" in ended.stdout
        )
    assert list(table(tmp_path / "out")[0])[:4] == ["job", "seed", "model", "estimator"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_job_that_cannot_run_stops_no_other(tiny, tmp_path, launcher):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    ended = run(
        tmp_path, "train", "-m", *tiny, "trainer.learning_rate=0.001,-1,0.002", *LAUNCHERS[launcher], "output_dir=out"
    )
    assert ended.returncode == 1 and "Traceback" not in ended.stdout + ended.stderr
    assert "1 of the jobs in out have not ended: 1; each has said why" in ended.stderr
    errors = ended.stderr + "".join(path.read_text() for path in (tmp_path / "out").glob(".submitit/*/*.err"))
    assert "learning_rate=-1 must be a finite number of at least 0" in errors
    assert [row["job"] for row in table(tmp_path / "out")] == ["0", "2"]


def test_a_sweep_into_the_folder_of_a_run_is_refused(refused_as_typed, tiny, compared):
    line = refused_as_typed("compare", "-m", *tiny, "seeds=[0],[1]", f"output_dir={compared}")
    assert re.search("holds results of its own: choose another for those of a sweep", line)
