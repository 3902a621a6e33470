"""The folder of a command: one process at a time, one configuration, and nothing of others touched."""

import errno
import json
import multiprocessing
import os
import shutil
import time

import pytest

from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.folders import ANALYSIS, claimed, claims, complete, held

VALUES = {
    "task": {},
    "model": {},
    "estimator": {"bptt": {}},
    "trainer": {"lr": 1},
    "seeds": [0, 1],
    "output_dir": "x",
}


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
    for lock in ("", "process 123 on a", "\0" * 16):
        (tmp_path / ".loopgrad.lock").write_text(lock)
        for name in (".config.json.123", ".config.json.124.part"):
            (tmp_path / name).write_text("")
        (tmp_path / "config.json").unlink(missing_ok=True)
        with claimed(tmp_path, VALUES, False) as complete:
            assert not complete
    assert contents(tmp_path) == ["config.json"]
    (tmp_path / "config.json").unlink()
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match="holds no results of this command"), claimed(tmp_path, VALUES, False):
        pass


def test_parts_of_files_that_killed_processes_left_are_removed_and_nothing_else(tmp_path):
    run, other = tmp_path / "runs" / "bptt-seed0", tmp_path / "runs" / "bptt-seed0-kept"
    for place in (run, other):
        place.mkdir(parents=True)
    ours = [run / ".checkpoint.pt.77", run / ".train.jsonl.8.part", run / ".weights-000100.safetensors.9.part"]
    ours += [tmp_path / ".records.jsonl.5.part", tmp_path / ".comparison.png.5.part"]
    others = [run / ".notes.7", tmp_path / ".settings.json.1", run / "checkpoint.pt.77", tmp_path / "a.part"]
    others += [other / ".checkpoint.pt.77", other / ".train.jsonl.8.part"]
    with claimed(tmp_path / "new", VALUES, False):
        (tmp_path / "new" / "config.json").rename(tmp_path / "config.json")
    for path in (*ours, *others):
        path.write_text("")
    with claimed(tmp_path, VALUES | {"output_dir": "y"}, False):
        assert not any(path.exists() for path in ours) and all(path.exists() for path in others)


def of_weights(name):
    return json.dumps({"name": name, "depths": []})


def test_beginning_anew_removes_what_commands_wrote_and_nothing_of_others(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "checkpoint.pt").write_text("precious")
    folder = tmp_path / "results"
    with claimed(folder, VALUES, False):
        pass
    run, mine, kept = (folder / "runs" / name for name in ("bptt-seed0", "mine", "bptt-seed0-kept"))
    for place in (run / "tensorboard", mine, kept, folder / "weights", folder / "figures", folder / "runs" / "empty"):
        place.mkdir(parents=True)
    ours = [run / "train.jsonl", run / "checkpoint.pt", run / "weights-000100.safetensors", folder / "records.jsonl"]
    ours += [run / "tensorboard" / "events.out.tfevents.1.host", folder / "report.md", folder / "report.html"]
    others = [mine / "notes.md", run / "plot.py", folder / "weights" / "keep.bin", folder / "paper.pdf"]
    others += [kept / "checkpoint.pt", kept / "train.jsonl", folder / "weights" / "notes.json"]
    others += [folder / "figures" / "sketch-a.png", folder / "runs" / "empty"]
    for path in (*ours, *others):
        if not path.is_dir():
            path.write_text("")
    for name, told, whose in (("a-step2", "a@2", ours), ("copy", "a@2", others)):
        (folder / "weights" / f"{name}.json").write_text(of_weights(told))
        (folder / "figures" / f"{name}-heatmap.png").write_text("")
        whose += [folder / "weights" / f"{name}.json", folder / "figures" / f"{name}-heatmap.png"]
    (folder / "runs" / "linked").symlink_to(elsewhere)
    (run / "weights.safetensors").symlink_to(elsewhere / "checkpoint.pt")
    with claimed(folder, VALUES | {"trainer": {"lr": 2}}, True) as complete:
        assert not complete
    assert not any(path.exists() for path in ours) and all(path.exists() for path in others)
    assert (elsewhere / "checkpoint.pt").read_text() == "precious" and not (run / "tensorboard").exists()
    assert json.loads((folder / "config.json").read_text())["trainer"] == {"lr": 2}


def test_a_claim_has_the_runs_of_its_conditions_and_no_others(tmp_path):
    folder, of_claim = tmp_path / "results", frozenset({"claim", "size", "every"})
    values = {"claim": "mine", "size": "cpu", "every": [], "conditions": {"deep": [], "bptt": []}, "seeds": [0, 1]}
    with claimed(folder, values, False, of_claim):
        pass
    runs = {
        name: folder / "runs" / name for name in ("deep-seed1", "bptt-seed0", "deep-seed2", "shallow-seed0", "deep")
    }
    for place in runs.values():
        place.mkdir(parents=True)
        (place / "checkpoint.pt").write_text("")
        (place / ".train.jsonl.77.part").write_text("")
    with claimed(folder, values, False, of_claim):  # what a killed process left of its own files goes
        left = {name for name, place in runs.items() if (place / ".train.jsonl.77.part").exists()}
        assert left == {"deep-seed2", "shallow-seed0", "deep"}
    with claimed(folder, values, True, of_claim):
        assert {name for name, place in runs.items() if place.exists()} == left
    with pytest.raises(ConfigError, match="holds no results of this command"), claimed(folder, VALUES, True):
        pass


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("linked", ["runs", "runs/bptt-seed1", "weights", "figures", "runs/bptt-seed1/tensorboard"])
def test_a_link_leads_nothing_that_is_written_or_removed_out_of_the_folder(tmp_path, linked, restart):
    folder, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    with claimed(folder, VALUES, False):
        (folder / "records.jsonl").write_text("{}")
    (elsewhere / "bptt-seed1").mkdir(parents=True)
    (elsewhere / "checkpoint.pt").write_text("precious")
    (folder / linked).parent.mkdir(exist_ok=True, parents=True)
    (folder / linked).symlink_to(elsewhere)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=f"{linked} is a link"), claimed(folder, VALUES, restart):
        pass
    assert contents(tmp_path) == before


def test_a_folder_that_is_itself_a_link_is_as_good_as_another(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "results").symlink_to(tmp_path / "disk")
    for restart in (False, True):
        with claimed(tmp_path / "results", VALUES, restart) as complete:
            (tmp_path / "results" / "runs" / "bptt-seed0").mkdir(parents=True)
            (tmp_path / "results" / "runs" / "bptt-seed0" / "train.jsonl").write_text("")
            assert not complete
    assert contents(tmp_path / "disk") == ["config.json", "runs", "runs/bptt-seed0", "runs/bptt-seed0/train.jsonl"]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    "name", ["runs", "weights", "figures", "records.jsonl", "report.md", "report.html", "comparison.png"]
)
def test_what_lies_where_results_go_and_is_of_the_wrong_kind_is_named_and_left_alone(tmp_path, name, restart):
    folder = tmp_path / "results"
    with claimed(folder, VALUES, False):
        (folder / "train.txt").write_text("")
    (folder / name).mkdir() if "." in name else (folder / name).write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=f"{name} is no fi?o?l"), claimed(folder, VALUES, restart):
        pass
    assert contents(tmp_path) == before


ODD = {
    "link": lambda path: path.symlink_to(path.parent / "precious"),
    "hard_link": lambda path: path.hardlink_to(path.parent / "precious"),
    "file": lambda path: path.write_text("precious"),
    "pipe": os.mkfifo,
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_lock_that_is_none_of_ours_is_named_and_left_alone(tmp_path, kind):
    (tmp_path / "precious").write_text("precious")
    lock = tmp_path / ".loopgrad.lock"
    ODD[kind](lock)
    with pytest.raises(ConfigError, match="loopgrad.lock is no lock of loopgrad's: remove it"), held(tmp_path):
        pass
    assert lock.exists() and (tmp_path / "precious").read_text() == "precious"
    assert kind != "file" or lock.read_text() == "precious"


def test_where_the_file_system_has_no_locks_a_command_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("loopgrad.experiments.folders.locks.fcntl.flock", refuse)
    with claimed(tmp_path / "new", VALUES, False) as complete:
        assert not complete
    assert "has no locks" in capsys.readouterr().out and contents(tmp_path) == ["new", "new/config.json"]


def test_a_folder_that_another_command_removes_meanwhile_is_made_again(tmp_path, monkeypatch):
    made, left = claims.make_folder, [3]

    def made_and_removed(folder):
        found = made(folder)
        left[0] -= 1
        if left[0] > 0:
            folder.rmdir()
        return found

    monkeypatch.setattr(claims, "make_folder", made_and_removed)
    with held(tmp_path / "new"):
        assert (tmp_path / "new").exists()
    assert left == [0] and contents(tmp_path) == []


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


def test_what_a_configuration_holds_is_shown_in_short(tmp_path):
    deep = []
    for _ in range(900):
        deep = [deep]
    (tmp_path / "config.json").write_text(json.dumps({**VALUES, "trainer": {"lr": deep, "x" * 500: 1}}))
    with pytest.raises(ConfigError, match=r"another configuration \(trainer.lr: \[\[.*\.\.\. -> 1, t") as caught:
        with claimed(tmp_path, VALUES, False):
            pass
    assert len(str(caught.value)) < 800


def test_a_folder_that_was_removed_while_it_was_held_is_not_half_made_again(tmp_path):
    folder = tmp_path / "results"
    with pytest.raises(FileNotFoundError, match="was removed while the command ran"), claimed(folder, VALUES, False):
        shutil.rmtree(folder)
        complete(folder, [{}])
    assert not folder.exists()


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
