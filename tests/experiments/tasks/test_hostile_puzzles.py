"""A hundred files that are no puzzles, or nearly: the task is made of them, or one line says which and where."""

from collections import Counter

import hostile_puzzles
import pytest
import torch
from trials import TINY, Commands

from loopgrad.experiments.tasks import Sudoku

SEEDS = range(100 - len(hostile_puzzles.MADE))


def ended(path):
    """Why a file is refused; nothing if a task was made of it."""
    try:
        task = Sudoku(size=4, path=str(path))
        batch, test = task.train_batch(0, 0, 4), task.test_set()
    except ValueError as refusal:
        assert str(refusal).startswith(str(path)) and len(str(refusal)) < 700
        return str(refusal)
    for found in (batch, test):
        assert task.is_solved(found.inputs, found.labels).all() and torch.isfinite(found.inputs.float()).all()
    return ""


@pytest.mark.slow
def test_a_hundred_files_are_read_or_refused_by_name(tmp_path):
    ends = Counter()
    for seed in SEEDS:
        path = tmp_path / f"{seed}.csv"
        path.write_bytes(hostile_puzzles.tampered(seed))
        ends["refused" if ended(path) else "read"] += 1
    for name, make in hostile_puzzles.MADE.items():
        (folder := tmp_path / name.replace(" ", "-")).mkdir()
        make(folder / "puzzles.csv")
        ends["by hand, refused" if ended(folder / "puzzles.csv") else "by hand, read"] += 1
    print(f"puzzle files: {dict(ends)}")
    assert ends["read"] >= 10 and ends["refused"] >= 30


@pytest.mark.slow
def test_the_command_refuses_them_in_one_line_within_its_memory_and_writes_nothing(tmp_path):
    ends = Counter()
    with Commands() as commands:
        for name in ("pipe", "random device", "process", "holes", "huge", "long line", "long field", "folder", "gzip"):
            (folder := tmp_path / name.replace(" ", "-")).mkdir()
            hostile_puzzles.MADE[name](folder / "puzzles.csv")
            before = sorted(folder.iterdir())
            outcome = commands.run(folder, "train", *TINY, "task.path=puzzles.csv", "output_dir=out", timeout=30)
            assert outcome.in_one_line() and outcome.code == 2, (name, outcome)
            assert "puzzles.csv" in outcome.err and sorted(folder.iterdir()) == before, (name, outcome)
            assert outcome.most_bytes < 2**29, (name, outcome.most_bytes)
            ends[outcome.code] += 1
    print(f"commands by exit code: {dict(ends)}")
