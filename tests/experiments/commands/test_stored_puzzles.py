"""Tasks of folders that an official builder wrote, from the configuration to a record."""

import json
import math
import os

import official_folders
import pytest

from loopgrad.experiments import records
from loopgrad.experiments.conf.overrides import composed
from loopgrad.experiments.conf.parts import build_model, parts
from loopgrad.experiments.training.loop import begin, train

TASKS = {"sudoku": ["task=sudoku4"], "maze": ["task=maze"], "arc": ["task=arc1", "task.max_size=6"]}
TINY = ["model=trm_attention", "model.hidden_size=16", "model.num_heads=2", "trainer.batch_size=4", "estimator=bptt"]
TINY += ["trainer.train_steps=1", "trainer.device=cpu"]


@pytest.fixture(scope="module", params=TASKS)
def asked(request, tmp_path_factory):
    """Words that ask for a task of a folder."""
    folder = official_folders.FOLDERS[request.param](tmp_path_factory.mktemp("official") / "it")
    return [*TASKS[request.param], f"task.path={folder}"]


def test_a_step_is_trained_and_evaluated(asked):
    built = parts(composed("train", [*TINY, *asked]))
    assert built.values["task"]["path"] == asked[-1].removeprefix("task.path=")
    run = begin(built.trainer, built.task, build_model(built.values["model"], built.task, seed=0), 0)
    (entry,) = train(run, built.trainer, built.task, built.estimators["bptt"], 0)
    assert math.isfinite(entry["loss"]) and 0 <= entry["test_match_accuracy"] <= entry["test_exact_accuracy"] <= 1


def test_a_folder_that_lacks_something_is_refused_before_anything_is_written(asked, refused, tmp_path):
    folder = asked[-1].removeprefix("task.path=")
    (tmp_path / "test").mkdir()
    (tmp_path / "train").symlink_to(os.path.join(folder, "train"))
    told = refused("train", *TINY, *asked[:-1], f"task.path={tmp_path}", "output_dir=out")
    assert told == f"{tmp_path}/test/dataset.json: cannot be read: No such file or directory"


@pytest.mark.slow
def test_a_whole_command_records_both_scores_and_goes_on(asked, loopgrad, tmp_path):
    small = ["trainer.num_threads=1", "trainer.eval_every=1", "output_dir=out"]
    result = loopgrad("train", *TINY, *small, *asked)
    assert result.code == 0 and "of held-out samples exact" in result.out, result.err
    (record,) = records.read(tmp_path / "out" / "records.jsonl")
    assert 0 <= record["match_accuracy"] <= record["exact_accuracy"] and len(record["curve"]["match_accuracy"]) == 1
    assert json.loads((tmp_path / "out" / "config.json").read_text())["task"]["path"] in asked[-1]
    assert "holds this run already" in loopgrad("train", *TINY, *small, *asked).out
