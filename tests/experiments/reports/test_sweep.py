"""The joint report of a sweep: what varies is found in the records, and seeds are put together."""

import copy
import csv
import io
import json

import pytest
from rich.console import Console

from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.records import RunRecord
from loopgrad.experiments.reports import sweep


@pytest.fixture
def job(compared):
    """A function that gives the record of a run of a comparison, with other values."""
    known = list(records.read(compared / "records.jsonl", RunRecord))

    def made(estimator, seed=0, score=None, **values):
        (found,) = (copy.deepcopy(r) for r in known if r["estimator"] == estimator and r["seed"] == seed)
        for key, value in values.items():
            group, name = key.split("__")
            found["config"].setdefault(group, {})[name] = value
            if name == "named":
                found[group] = value
        if score is not None:
            found["exact_accuracy"] = score
        return found

    return made


def rendered(folder, *jobs):
    for number, found in enumerate(jobs):
        (folder / str(number)).mkdir(parents=True)
        if found:
            (folder / str(number) / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found))
    file = io.StringIO()
    missing = sweep.render(folder, Console(file=file, width=200))
    return missing, file.getvalue(), list(csv.DictReader(io.StringIO((folder / "sweep.csv").read_text())))


def test_what_varies_is_found_and_seeds_are_together(job, tmp_path):
    jobs = [
        [job("bptt", seed, score, trainer__learning_rate=rate)]
        for rate, scores in ((0.1, (0.2, 0.4)), (0.3, (0.5, 0.6)))
        for seed, score in enumerate(scores)
    ]
    missing, printed, rows = rendered(tmp_path, *jobs, [])
    assert missing == [4]
    page = (tmp_path / "report.md").read_text()
    assert "| job | trainer.learning_rate | estimator | exact %" in page and "jobs 4" in page
    assert "| 0, 1 | 0.1 | bptt | 30.0 (20.0-40.0) |" in page and "| 2, 3 | 0.3 | bptt | 55.0 (50.0-60.0) |" in page
    assert (
        "bptt with trainer.learning_rate=0.3 solves 55.0 % of the held-out samples exactly (mean of 2 seeds)" in printed
    )
    assert [(row["job"], row["seed"], row["trainer.learning_rate"]) for row in rows] == [
        ("0", "0", "0.1"), ("1", "1", "0.1"), ("2", "0", "0.3"), ("3", "1", "0.3")
    ]  # fmt: skip
    assert [float(row["exact_accuracy"]) for row in rows] == [0.2, 0.4, 0.5, 0.6]
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} >= {"sweep.png", "sweep.svg"}


def test_estimators_tasks_and_their_own_keys(job, tmp_path):
    jobs = [
        [job("bptt"), job("one_step")],
        [job("bptt", task__named="other", task__length=7), job("one_step", task__named="other", task__length=7)],
        [job("bptt", task__named="other", task__length=8), job("one_step", task__named="other", task__length=8)],
    ]
    _, _, rows = rendered(tmp_path, *jobs)
    told = {"job", "seed", "task", "task.length", "estimator", *sweep.VALUES}
    assert set(rows[0]) == told, "keys of one task alone, such as its size, tell nothing beside its name"
    assert [(row["task.length"], row["estimator"]) for row in rows[2:]] == [
        ("7", "bptt"), ("7", "one_step"), ("8", "bptt"), ("8", "one_step")
    ]  # fmt: skip


def test_one_that_is_as_good_is_not_hidden(job, tmp_path):
    jobs = [[job("bptt", score=0.5, trainer__learning_rate=rate)] for rate in (0.1, 0.2, 0.3)]
    assert "; 2 others are equal to it" in rendered(tmp_path, *jobs)[1]


def test_values_of_others_stay_text(job, tmp_path):
    jobs = [[job("bptt", trainer__note=note)] for note in ("=cmd()", "| <b>x</b>\n# y", "\x1b[31mred", "a" * 500)]
    _, printed, rows = rendered(tmp_path, *jobs)
    page = (tmp_path / "report.md").read_text()
    assert "\x1b" not in printed + page and "\n# y" not in page and max(map(len, page.splitlines())) < 2000
    assert rows[0]["trainer.note"] == "'=cmd()"


def test_what_is_no_sweep_is_refused(job, tmp_path):
    with pytest.raises(ConfigError, match="none of the 2 jobs of this sweep has ended"):
        rendered(tmp_path / "a", [], [])
    (tmp_path / "b" / "0").mkdir(parents=True)
    (tmp_path / "b" / "0" / "records.jsonl").write_text('{"estimator": 3}\n')
    with pytest.raises(ConfigError, match=r"0/records\.jsonl"):
        sweep.render(tmp_path / "b", Console(file=io.StringIO()))
