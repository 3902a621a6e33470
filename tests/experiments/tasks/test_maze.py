"""Mazes against all simple paths enumerated one by one."""

import numpy as np
import pytest
import torch

from loopgrad.experiments.tasks import Maze
from loopgrad.experiments.tasks.maze import GOAL, PATH, SPACE, START, WALL, dihedral_images
from loopgrad.experiments.tasks.shortest_path import distances


def simple_paths(free, start):
    """Every path without a repeated cell from start, as lists of cells."""
    paths, unfinished = [], [[start]]
    while unfinished:
        path = unfinished.pop()
        paths.append(path)
        row, column = path[-1]
        for cell in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            inside = 0 <= cell[0] < len(free) and 0 <= cell[1] < len(free[0])
            if inside and free[cell] and cell not in path:
                unfinished.append([*path, cell])
    return paths


def test_distances_equal_enumeration():
    rng = np.random.default_rng(0)
    free = rng.random((40, 4, 5)) > 0.25
    start = np.zeros_like(free)
    start[:, 1, 1] = free[:, 1, 1] = True
    for maze, distance in zip(free, distances(free, start), strict=True):
        by_end = {}
        for path in simple_paths(maze, (1, 1)):
            by_end.setdefault(path[-1], []).append(len(path) - 1)
        for cell in np.ndindex(4, 5):
            assert distance[cell] == min(by_end.get(cell, []), default=-1)


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


def test_the_eight_images_are_those_of_a_square():
    images = dihedral_images(np.arange(9).reshape(1, 3, 3))[:, 0]
    square = np.arange(9).reshape(3, 3)
    expected = [square, square[::-1], square[:, ::-1], square[::-1, ::-1]]
    expected += [image.T for image in expected]
    assert {image.tobytes() for image in images} == {np.ascontiguousarray(image).tobytes() for image in expected}


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
