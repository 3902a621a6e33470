"""Distances and numbers of shortest paths, against all simple paths enumerated one by one, and in closed form."""

from math import comb

import numpy as np
from simple_paths import simple_paths

from loopgrad.experiments.tasks.shortest_path import count_paths, distances


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


def test_as_many_shortest_paths_are_counted_as_enumerated():
    rng = np.random.default_rng(1)
    free = rng.random((60, 4, 5)) > 0.2
    start, goal = np.zeros_like(free), np.zeros_like(free)
    for i in range(len(free)):
        ends = rng.choice(20, 2, replace=False)
        start[i].flat[ends[0]] = goal[i].flat[ends[1]] = True
    free |= start | goal
    expected = []
    for maze, begin, end in zip(free, start, goal, strict=True):
        begin, end = (tuple(np.argwhere(cells)[0].tolist()) for cells in (begin, end))
        lengths = [len(path) for path in simple_paths(maze, begin) if path[-1] == end]
        expected.append(lengths.count(min(lengths, default=0)))
    assert count_paths(free, start, goal) == expected
    assert 0 in expected and 1 in expected and max(expected) > 5


def test_an_open_square_has_a_binomial_number_of_them_beyond_what_a_float_holds():
    free = np.ones((1, 30, 30), dtype=bool)
    start, goal = np.zeros_like(free), np.zeros_like(free)
    start[0, 0, 0] = goal[0, -1, -1] = True
    (count,) = count_paths(free, start, goal)
    assert count == comb(58, 29) > 2**53
    assert count_paths(free[:0], start[:0], goal[:0]) == []
