"""Mazes of a folder: the rows of its files, what is left out of training, and what is no maze."""

import hostile_folders
import numpy as np
import official_folders
import pytest
import torch

from loopgrad.experiments.tasks import Maze
from loopgrad.experiments.tasks.maze_grids import GOAL, PATH, SPACE, START, WALL, image_keys


@pytest.fixture
def folder(tmp_path):
    return official_folders.write_mazes(tmp_path / "maze", augmented=True)


def labels_of(folder, part):
    return {tuple(row) for row in np.load(folder / part / "all__labels.npy").tolist()}


def test_without_augmentation_of_our_own_batches_are_rows_of_the_folder(folder):
    task = Maze(path=str(folder), augment=False)
    assert task.spec.seq_len == 25 and task.spec.num_puzzles == 0
    batches = [task.train_batch(0, step, 9) for step in range(80)]
    assert {tuple(row) for batch in batches for row in batch.labels.tolist()} == labels_of(folder, "train")
    assert {tuple(row) for row in task.test_set().labels.tolist()} == labels_of(folder, "test")
    for batch in (batches[0], task.test_set()):
        assert torch.equal(batch.inputs, torch.where(batch.labels == PATH, SPACE, batch.labels))
        keys = image_keys(batch.inputs.numpy().astype(np.uint8).reshape(-1, 5, 5))
        assert len(set(keys)) == len(batch)  # an epoch has each maze once, by one of its images
    assert Maze(path=str(folder), shared_puzzle=True).spec.num_puzzles == 1


def test_with_augmentation_they_are_turned_and_mirrored_once_more(tmp_path):
    folder = official_folders.write_mazes(tmp_path / "plain", groups=1)
    task = Maze(path=str(folder))
    assert len({tuple(row) for row in task.train_batch(0, 0, 200).labels.tolist()}) == 8


def test_at_most_so_many_mazes_are_taken_and_the_defaults_are_limits(folder, monkeypatch):
    task = Maze(path=str(folder), augment=False, num_train=2, num_test=3)
    assert len({tuple(row) for step in range(30) for row in task.train_batch(0, step, 8).labels.tolist()}) == 16
    assert len(task.test_set()) == 3
    assert len(Maze(path=str(folder)).test_set()) == 5


def test_a_maze_that_is_a_held_out_one_turned_is_not_trained_on(folder):
    for name in ("inputs", "labels"):
        held = np.rot90(np.load(folder / "test" / f"all__{name}.npy")[1].reshape(5, 5)).reshape(-1)
        path = folder / "train" / f"all__{name}.npy"
        found = np.load(path)
        found[8:16] = held
        np.save(path, found)
    task = Maze(path=str(folder), augment=False)
    seen = {tuple(row) for step in range(80) for row in task.train_batch(0, step, 8).labels.tolist()}
    assert len(seen) == 64 and seen < labels_of(folder, "train")


def test_the_marks_of_another_shortest_path_solve_a_maze_of_a_folder(tmp_path):
    folder = official_folders.write_mazes(tmp_path / "open", size=4, groups=2, held_out=1)
    one = np.full((4, 4), SPACE, dtype=np.uint8)
    one[1:3, 1:3], one[0, 0], one[3, 3] = WALL, START, GOAL
    solved = one.copy()
    solved[0, 1:], solved[1:3, 3] = PATH, PATH
    np.save(folder / "test" / "all__inputs.npy", one.reshape(1, -1))
    np.save(folder / "test" / "all__labels.npy", solved.reshape(1, -1))
    task = Maze(path=str(folder))
    test = task.test_set()
    other = torch.from_numpy(solved.T.reshape(1, -1).astype(np.int64))
    assert task.count_shortest_paths(test.inputs) == [2]
    assert task.is_solved(test.inputs, other).all() and not torch.equal(other, test.labels)


def at(folder, part, row, token):
    """Where a token stands first in the labels of a row."""
    return row, int((np.load(folder / part / "all__labels.npy")[row] == token).argmax())


@pytest.mark.parametrize(
    ("part", "name", "token", "becomes", "reason"),
    [
        ("train", "inputs", WALL, 6, "a token is none of 0 to 5, by vocab_size"),
        ("train", "inputs", WALL, 0, "a cell is no wall, space, start or goal"),
        ("test", "inputs", WALL, PATH, "a cell is no wall, space, start or goal"),
        ("test", "inputs", START, SPACE, "a maze has one start and one goal, and this has not"),
        ("test", "inputs", WALL, GOAL, "a maze has one start and one goal, and this has not"),
        ("train", "labels", WALL, SPACE, "it differs from its input by more than spaces marked as path"),
        ("train", "labels", WALL, PATH, "it differs from its input by more than spaces marked as path"),
        ("train", "labels", PATH, 0, "it differs from its input by more than spaces marked as path"),
        ("train", "labels", PATH, SPACE, "what it marks is no shortest path from start to goal"),
    ],
)
def test_what_is_no_maze_is_refused_by_file_and_row(folder, part, name, token, becomes, reason):
    hostile_folders.array(name, hostile_folders.entry(at(folder, part, 2, token), becomes), part)(folder)
    with pytest.raises(ValueError) as caught:
        Maze(path=str(folder)).test_set()
    assert str(caught.value).startswith(f"{folder / part / f'all__{name}.npy'}, row 2: {reason}")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"seq_len": 24}, "seq_len is 24, and rows of all__inputs.npy have 25"),
        ({"vocab_size": 7}, "dataset.json: vocab_size is 7, and 6 for mazes"),
        ({"num_puzzle_identifiers": 2}, "identifiers.json: 1 names"),
    ],
)
def test_figures_of_something_else_are_refused(folder, values, reason):
    for part in ("train", "test"):
        hostile_folders.figures(part, **values)(folder)
    with pytest.raises(ValueError, match=reason):
        Maze(path=str(folder)).test_set()


def test_rows_that_are_no_squares_are_refused(folder):
    for part in ("train", "test"):
        hostile_folders.figures(part, seq_len=24)(folder)
        for name in ("inputs", "labels"):
            hostile_folders.array(name, lambda a: a[:, :24].copy(), part)(folder)
    with pytest.raises(ValueError, match="dataset.json: seq_len is 24, no square of 2 to 512 cells a side"):
        Maze(path=str(folder)).test_set()


@pytest.mark.parametrize(("name", "value"), [("min_path", 4), ("wall_fraction", 0.3)])
def test_what_is_for_generated_mazes_is_refused_with_a_folder(name, value):
    with pytest.raises(ValueError, match=rf"Maze\({name}=...\) is for generated mazes: leave it out with path="):
        Maze(path="nowhere", **{name: value})


def test_the_size_is_that_of_the_folder_and_another_one_is_refused(folder):
    assert Maze(path=str(folder), size=5).spec.seq_len == Maze(path=str(folder)).spec.seq_len == 25
    with pytest.raises(ValueError, match=r"Maze\(size=6\): the mazes of .* are of size 5: leave size out with path"):
        Maze(path=str(folder), size=6).test_set()
