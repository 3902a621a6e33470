"""Mazes against all simple paths enumerated one by one."""

import numpy as np
import pytest
import torch
from simple_paths import simple_paths

from loopgrad.experiments.tasks import Maze
from loopgrad.experiments.tasks.maze_grids import GOAL, PATH, SPACE, START, WALL, dihedral_images


@pytest.mark.parametrize("wall_fraction", [0.0, 0.35])
def test_the_label_is_the_only_shortest_path(wall_fraction):
    task = Maze(size=5, min_path=5, wall_fraction=wall_fraction, num_train=30, num_test=10)
    for batch in (task.train_batch(0, 0, 30), task.test_set()):
        for inputs, labels in zip(batch.inputs.numpy(), batch.labels.numpy(), strict=True):
            maze, answer = inputs.reshape(5, 5), labels.reshape(5, 5)
            start, goal = (tuple(np.argwhere(maze == token)[0].tolist()) for token in (START, GOAL))
            paths = [path for path in simple_paths(maze != WALL, start) if path[-1] == goal]
            shortest = min(map(len, paths))
            best = [path for path in paths if len(path) == shortest]
            assert len(best) == 1 and shortest - 1 >= 5
            assert set(map(tuple, np.argwhere(answer == PATH).tolist())) == set(best[0][1:-1])
            assert (np.where(answer == PATH, SPACE, answer) == maze).all()


def grid(text, size):
    symbols = {"#": WALL, " ": SPACE, ".": SPACE, "S": START, "G": GOAL, "o": PATH}
    return torch.tensor([symbols[c] for c in text.replace("/", "")]).reshape(size * size)


@pytest.mark.parametrize(
    "maze, answer, expected",
    [
        ("S.../.##./.##./...G", "Sooo/.##o/.##o/...G", True),
        ("S.../.##./.##./...G", "S.../o##./o##./oooG", True),  # the other shortest path
        ("S.../.##./.##./...G", "Sooo/o##o/o##o/oooG", False),  # both
        ("S.../.##./.##./...G", "Soo./.##o/.##o/...G", False),  # a gap
        ("S.../.##./.##./...G", "S.../.##./.##./...G", False),  # nothing marked
        ("S.../.##./.##./...G", "Sooo/.#oo/.##./...G", False),  # through a wall
        ("S.../.##./.##./...G", "Sooo/.##o/.##o/..oG", False),  # one stray mark
        ("S.../.##./.##./...G", "oooo/.##o/.##o/...G", False),  # the start overwritten
        ("SG../..../..../....", "SG../..../..../....", True),  # neighbours: nothing to mark
        ("SG../..../..../....", "SGo./..../..../....", False),
        ("S#../##../..../...G", "S#oo/##.o/...o/...G", False),  # no way at all
        ("..S./..#./..#./..G.", "..So/..#o/..#o/..Go", True),
        ("..S./..#./..#./..G.", ".oSo/.o#o/.o#o/.oG.", False),
    ],
)
def test_exactly_a_shortest_path_is_accepted(maze, answer, expected):
    task = Maze(size=4, num_train=2, num_test=1)
    assert task.is_solved(grid(maze, 4)[None], grid(answer, 4)[None]).tolist() == [expected]


def test_no_test_maze_is_a_turned_or_mirrored_training_maze():
    task = Maze(size=3, min_path=2, num_train=150, num_test=60, augment=False)
    train = {tuple(m) for step in range(15) for m in task.train_batch(0, step, 10).inputs.tolist()}
    assert len(train) == 150
    images = dihedral_images(task.test_set().inputs.numpy().reshape(-1, 3, 3)).reshape(-1, 9)
    assert len(images) == 480
    assert train.isdisjoint(map(tuple, images.tolist()))


def test_augmentation_shows_all_eight_images():
    task = Maze(size=6, num_train=1, num_test=1)
    boards = {tuple(m) for m in task.train_batch(0, 0, 200).inputs.tolist()}
    assert len(boards) == 8


def test_long_paths_are_found():
    task = Maze(size=12, min_path=30, num_train=10, num_test=5)
    assert ((task.test_set().labels == PATH).sum(dim=1) + 1 >= 30).all()


def test_paths_that_are_too_long_or_mazes_that_are_too_few_are_refused():
    with pytest.raises(ValueError, match=r"Maze\(min_path=24\).*lower min_path"):
        Maze(size=5, min_path=24, num_train=1, num_test=1).test_set()
    with pytest.raises(ValueError, match=r"Maze\(num_train=500, num_test=100\): only"):
        Maze(size=2, min_path=1, num_train=500, num_test=100).test_set()
    with pytest.raises(ValueError, match="min_path=2"):
        Maze(size=2, min_path=2, wall_fraction=0.999, num_train=1, num_test=1).test_set()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"size": 1}, r"size=...\) must be in 2..512"),
        ({"size": 4, "min_path": 16}, r"min_path=...\) must be in 1..15"),
        ({"wall_fraction": 1.0}, r"wall_fraction=...\) must be in \[0, 1\)"),
        ({"wall_fraction": "0.3"}, r"wall_fraction=...\) must be a number"),
        ({"augment": "yes"}, r"augment=...\)"),
    ],
)
def test_hyperparameters_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Maze(**arguments)


def test_rendering_shows_maze_and_answer():
    task = Maze(size=2, min_path=1, num_train=1, num_test=1)
    assert task.render(grid("S./#G", 2), grid("So/#G", 2)) == "S    So\n#G   #G"


def test_generated_mazes_have_one_shortest_path():
    task = Maze(size=6, min_path=4, num_train=20, num_test=4)
    assert task.count_shortest_paths(task.train_batch(0, 0, 20).inputs) == [1] * 20


def test_shortest_paths_of_tokens_are_counted():
    task = Maze(size=4, num_train=2, num_test=1)
    mazes = ["S.../.##./.##./...G", "S.../..../..../...G", "S#../##../..../...G", "SG../..../..../...."]
    assert task.count_shortest_paths(torch.stack([grid(maze, 4) for maze in mazes])) == [2, 20, 0, 1]
    with pytest.raises(ValueError, match=r"inputs\[1\] has 2 starts and 0 goals"):
        task.count_shortest_paths(torch.stack([grid(mazes[0], 4), grid("S.../..../..../...S", 4)]))
    with pytest.raises(ValueError, match="argmax"):
        task.count_shortest_paths(torch.zeros(1, 16))
