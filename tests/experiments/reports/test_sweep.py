"""The joint report of a sweep: what varies is found in the records, and seeds are put together."""

import copy
import csv
import io
import json

import pytest
from hostile_records import TEXTS
from inert_reports import what_acts_in
from rich.console import Console

from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.records import RunRecord
from loopgrad.experiments.reports import sweep


@pytest.fixture
def job(compared):
    """A function that gives the record of a run of a comparison, with other values."""
    known = list(records.read(compared / "records.jsonl", RunRecord))

    def made(estimator, seed=0, score=None, typed=None, **values):
        (found,) = (copy.deepcopy(r) for r in known if r["estimator"] == estimator and r["seed"] == seed)
        for key, value in values.items():
            group, name = key.split("__")
            found["config"].setdefault(group, {})[name] = value
            if name == "named":
                found[group] = value
        if score is not None:
            found["exact_accuracy"] = score
        if typed is not None:
            found["overrides"] = list(typed)
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


@pytest.mark.slow
def test_estimators_tasks_and_their_own_keys(job, tmp_path):
    jobs = [
        [job("bptt"), job("one_step")],
        [job("bptt", task__named="other", task__length=7), job("one_step", task__named="other", task__length=7)],
        [job("bptt", task__named="other", task__length=8), job("one_step", task__named="other", task__length=8)],
    ]
    _, _, rows = rendered(tmp_path, *jobs)
    told = {"job", "seed", "task", "task.length", "estimator", *sweep.VALUES, "residual"}
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


def recipes(job, *typed):
    """Jobs that differ in two keys of their configuration, each with the overrides that were typed for it."""
    return [
        [
            job(name, seed, score, typed=it, trainer__learning_rate=i, model__hidden_size=i)
            for name, scores in (("bptt", (0.6, 0.8)), ("one_step", ((0.5, 0.7), (0.1, 0.2))[i]))
            for seed, score in enumerate(scores)
        ]
        for i, it in enumerate(typed)
    ]


def test_comparisons_have_a_sentence_and_a_row_of_panels_each(job, tmp_path):
    _, printed, rows = rendered(tmp_path, *recipes(job, ["experiment=a"], ["experiment=b"]))
    page = (tmp_path / "report.md").read_text()
    for text in (printed, page):
        assert "Best of" not in text and "experiment=a: after 4 steps of trm on sudoku4 (2 seeds), BPTT solves" in text
    line_a, line_b = (line for line in page.splitlines() if line.startswith("experiment="))
    assert line_a.endswith(
        "cosine {:.2f}, residual {:.2g}) costs no accuracy that these seeds show.".format(*means(rows, "a"))
    )
    assert line_b.endswith(
        "cosine {:.2f}, residual {:.2g}) costs more accuracy than seeds differ by.".format(*means(rows, "b"))
    )
    assert list(rows[0])[:4] == ["job", "seed", "experiment", "estimator"]
    table = json.loads((tmp_path / "sweep.json").read_text())
    name = "trm on sudoku4, 2 seeds: mean, least and greatest"
    assert list(dict.fromkeys(row["case"] for row in table)) == [f"experiment={it}: {name}" for it in "ab"]
    assert "tokens %" not in printed and "tokens %" in page


def means(rows, experiment):
    mine = [row for row in rows if row["experiment"] == experiment and row["estimator"] == "one_step"]
    return [sum(float(row[key]) for row in mine) / len(mine) for key in ("gradient_cosine", "residual")]


@pytest.mark.slow
def test_more_comparisons_than_a_page_holds_are_told_by_the_best(job, tmp_path):
    jobs = [[job("bptt", typed=[f"x={i}"]), job("one_step", typed=[f"x={i}"], score=i / 10)] for i in range(7)]
    assert "Best of 14: one_step with x=6 solves 60.0 %" in rendered(tmp_path, *jobs)[1]


@pytest.mark.slow
def test_overrides_of_others_stay_text(job, tmp_path):
    texts = [text for text in TEXTS if 0 < len(text) < 500]
    jobs = [
        [job(name, typed=texts if i else [f"{text}={text}" for text in texts]) for name in ("bptt", "one_step")]
        for i in range(2)
    ]
    _, printed, _ = rendered(tmp_path, *jobs)
    assert what_acts_in(tmp_path, printed) == []


def test_what_is_no_sweep_is_refused(job, tmp_path):
    with pytest.raises(ConfigError, match="none of the 2 jobs of this sweep has ended"):
        rendered(tmp_path / "a", [], [])
    (tmp_path / "b" / "0").mkdir(parents=True)
    (tmp_path / "b" / "0" / "records.jsonl").write_text('{"estimator": 3}\n')
    with pytest.raises(ConfigError, match=r"0/records\.jsonl"):
        sweep.render(tmp_path / "b", Console(file=io.StringIO()))
