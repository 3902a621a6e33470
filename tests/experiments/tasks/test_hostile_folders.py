"""Folders that are none of the official layout, or nearly: a task is made of them, or one line says which and why."""

import shutil
from collections import Counter

import hostile_folders
import official_folders
import pytest
from trials import TINY, Commands

from loopgrad.experiments.tasks import Arc, Maze, Sudoku

MAKE = {
    "sudoku": lambda path: Sudoku(size=4, path=str(path)),
    "maze": lambda path: Maze(path=str(path)),
    "arc": lambda path: Arc(path=str(path), max_size=6),
}
CASES = hostile_folders.FILES | hostile_folders.ARRAYS | hostile_folders.FIGURES


def ended(kind, folder):
    """Why a folder is refused; nothing if a task was made of it."""
    try:
        task = MAKE[kind](folder)
        batches = task.train_batch(0, 0, 8), task.test_set()
    except ValueError as refusal:
        told = str(refusal)
        assert told.startswith(str(folder)) and "\n" not in told and len(told) < 500, told
        return told
    for batch in batches:
        assert task.is_solved(batch.inputs, batch.labels.clamp(min=0)).all()
        assert 0 <= batch.inputs.min() and batch.inputs.max() < task.spec.vocab_size
        assert batch.puzzle_ids.max() < max(1, task.spec.num_puzzles)
    return ""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("official")
    return {
        "plain": official_folders.write_mazes(place / "plain"),
        "maze": official_folders.write_mazes(place / "maze", groups=4, held_out=2, augmented=True),
        "sudoku": official_folders.write_sudoku(place / "sudoku", groups=4, held_out=2, augmentations=2),
        "arc": official_folders.write_arc(place / "arc"),
    }


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_refused_by_file_and_reason(folders, tmp_path, name):
    damage, file, reason = CASES[name]
    shutil.copytree(folders["plain"], folder := tmp_path / "it")
    assert ended("maze", folder) == ""
    damage(folder)
    told = ended("maze", folder)
    assert told.startswith(str(folder / file)) and reason in told
    assert not list(tmp_path.rglob("canary"))


@pytest.mark.parametrize("seeds", [range(18), pytest.param(range(18, 400), marks=pytest.mark.slow)])
def test_folders_with_bytes_changed_at_random_are_read_or_refused(folders, tmp_path, seeds):
    ends = Counter()
    for seed in seeds:
        kind = list(MAKE)[seed % 3]
        shutil.copytree(folders[kind], folder := tmp_path / str(seed))
        hostile_folders.tamper(folder, seed)
        ends["refused" if ended(kind, folder) else "read"] += 1
        shutil.rmtree(folder)
    assert ends["refused"] >= len(seeds) / 2 and ends["read"] >= 1


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for kind, name, reason in (
        ("maze", "nowhere", "nowhere/train/dataset.json: cannot be read: No such file"),
        ("arc", "file", "file/train/dataset.json: cannot be read: Not a directory"),
        ("sudoku", "nowhere", "nowhere: cannot be read: No such file"),
    ):
        assert reason in ended(kind, tmp_path / name)


@pytest.mark.slow
def test_the_command_refuses_them_in_one_line_within_its_memory_and_writes_nothing(folders, tmp_path):
    with Commands() as commands:
        for name in ("pipe", "device", "process", "holes", "holes of names", "long header", "nested", "uneven"):
            shutil.copytree(folders["plain"], folder := tmp_path / name.replace(" ", "-"))
            CASES[name][0](folder)
            before = sorted(folder.iterdir())
            outcome = commands.run(folder, "train", *TINY, "task=maze", "task.path=.", "output_dir=out", timeout=60)
            assert outcome.in_one_line() and outcome.code == 2, (name, outcome)
            assert CASES[name][1] in outcome.err and sorted(folder.iterdir()) == before, (name, outcome)
            assert outcome.most_bytes < 2**29, (name, outcome.most_bytes)
