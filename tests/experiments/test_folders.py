"""The folder of a command: one process at a time, one configuration, and nothing of others touched."""

import json
import multiprocessing
import time

import pytest

from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.folders import ANALYSIS, claimed, held

VALUES = {"task": {}, "model": {}, "estimator": {}, "trainer": {"lr": 1}, "output_dir": "x"}


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def claim_and_wait(folder, told, seconds):
    try:
        with claimed(folder, VALUES, False):
            told.put("claimed")
            time.sleep(seconds)
    except ConfigError as error:
        told.put(str(error))


@pytest.mark.slow
def test_of_two_processes_that_start_together_one_has_the_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    for turn in range(3):
        told = context.Queue()
        folder = tmp_path / str(turn) / "new"
        both = [context.Process(target=claim_and_wait, args=(folder, told, 3)) for _ in range(2)]
        for process in both:
            process.start()
        said = sorted(told.get(timeout=60) for _ in both)
        for process in both:
            process.join()
        assert said[1] == "claimed" and f"{folder} is in use by another loopgrad command" in said[0]


def test_a_folder_is_held_until_the_block_ends_and_a_wait_has_an_end(tmp_path):
    with held(tmp_path):
        with pytest.raises(ConfigError, match="in use by another"), held(tmp_path, patience=0.1):
            pass
    with held(tmp_path):
        pass


def test_what_a_killed_start_leaves_is_no_reason_to_refuse_the_folder(tmp_path):
    for name in (".lock", ".config.json.123", ".config.json.124.part"):
        (tmp_path / name).write_text("")
    with claimed(tmp_path, VALUES, False) as complete:
        assert not complete
    assert contents(tmp_path) == ["config.json"]
    (tmp_path / "config.json").unlink()
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match="holds no results of this command"), claimed(tmp_path, VALUES, False):
        pass


def test_parts_of_files_that_killed_processes_left_are_removed_and_nothing_else(tmp_path):
    run = tmp_path / "runs" / "bptt-seed0"
    run.mkdir(parents=True)
    ours = [run / ".checkpoint.pt.77", run / ".train.jsonl.8.part", run / ".weights-000100.safetensors.9.part"]
    ours += [tmp_path / ".records.jsonl.5.part", tmp_path / ".comparison.png.5.part"]
    others = [run / ".notes.7", tmp_path / ".settings.json.1", run / "checkpoint.pt.77", tmp_path / "a.part"]
    for path in (*ours, *others):
        path.write_text("")
    with claimed(tmp_path / "new", VALUES, False), held(tmp_path):
        assert not any(path.exists() for path in ours) and all(path.exists() for path in others)


def test_beginning_anew_removes_what_commands_wrote_and_nothing_of_others(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "checkpoint.pt").write_text("precious")
    folder = tmp_path / "results"
    with claimed(folder, VALUES, False):
        pass
    run, other = folder / "runs" / "bptt-seed0", folder / "runs" / "mine"
    for place in (run / "tensorboard", other, folder / "weights"):
        place.mkdir(parents=True)
    ours = [run / "train.jsonl", run / "checkpoint.pt", run / "weights-000100.safetensors", folder / "records.jsonl"]
    ours += [run / "tensorboard" / "events.out.tfevents.1.host", folder / "report.md", folder / "weights" / "a.json"]
    others = [other / "notes.md", run / "plot.py", folder / "weights" / "keep.bin", folder / "paper.pdf"]
    for path in (*ours, *others):
        path.write_text("")
    (folder / "runs" / "linked").symlink_to(elsewhere)
    with claimed(folder, VALUES | {"trainer": {"lr": 2}}, True) as complete:
        assert not complete
    assert not any(path.exists() for path in ours) and all(path.exists() for path in others)
    assert (elsewhere / "checkpoint.pt").read_text() == "precious" and not (run / "tensorboard").exists()
    assert json.loads((folder / "config.json").read_text())["trainer"] == {"lr": 2}


def test_another_configuration_and_another_command_are_refused(tmp_path):
    with claimed(tmp_path, VALUES, False):
        pass
    with claimed(tmp_path, VALUES | {"output_dir": "y"}, False) as complete:
        assert not complete
    with (
        pytest.raises(ConfigError, match="trainer.lr: 1 -> 2"),
        claimed(tmp_path, VALUES | {"trainer": {"lr": 2}}, False),
    ):
        pass
    with pytest.raises(ConfigError, match="no results of this command"), claimed(tmp_path, VALUES, False, ANALYSIS):
        pass
    (tmp_path / "records.jsonl").write_text("{}\n")
    with claimed(tmp_path, VALUES, False) as complete:
        assert complete


def test_a_folder_that_was_made_and_stays_empty_is_removed(tmp_path):
    with pytest.raises(ZeroDivisionError), held(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert contents(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="output_dir=.*cannot be written to"), held(tmp_path / "file" / "b"):
        pass
    with held(tmp_path / "c"):
        (tmp_path / "c" / "kept").write_text("")
    assert contents(tmp_path) == ["c", "c/kept", "file"]
