"""Shortest paths of generated mazes, and of a folder, counted beside a walk by hand."""

import json

import pytest
import torch

from loopgrad.experiments.benches.mazes import Mazes
from loopgrad.experiments.tasks import Maze


def by_walking(tokens: list[int], side: int) -> int:
    """Shortest paths from start to goal, by a breadth-first walk over Python ints."""
    start, goal = tokens.index(3), tokens.index(4)
    ways, layer, seen = {start: 1}, {start: 1}, {start}
    while layer and goal not in layer:
        following: dict[int, int] = {}
        for cell, count in layer.items():
            for step in (-side, side, -1, 1):
                to = cell + step
                inside = 0 <= to < side * side and (abs(step) == side or to // side == cell // side)
                if inside and to not in seen and tokens[to] != 1:
                    following[to] = following.get(to, 0) + count
        seen |= following.keys()
        layer = following
        ways |= following
    return layer.get(goal, 0)


def test_counts_are_those_of_a_walk_by_hand(monkeypatch):
    wide = torch.full((1, 16), 2)
    wide[0, 0], wide[0, 15] = 3, 4  # an open square: 20 ways
    task = Maze(size=4, num_train=4, num_test=4)
    inputs = torch.cat([task.test_set().inputs, wide])
    assert task.count_shortest_paths(inputs) == [by_walking(row, 4) for row in inputs.tolist()]
    assert task.count_shortest_paths(wide) == [20]


def test_generated_mazes_have_one_shortest_path_each():
    for row in Mazes(size=5, num_mazes=20).rows():
        assert row["mazes"] == 20 and row["single"] == 1 and row["labels shortest"] == 1 and row["counts"] == [1] * 20


@pytest.mark.slow
def test_the_command_leaves_a_record_and_a_figure(loopgrad, tmp_path):
    found = loopgrad("bench", "mazes", "size=5", "num_mazes=10", "output_dir=out")
    assert found.code == 0 and "20 of 20 mazes have a single shortest path" in found.out
    assert json.loads((tmp_path / "out/mazes.json").read_text())["rows"][0]["single"] == 1
    assert (tmp_path / "out/mazes-figure.svg").exists()


def test_what_is_no_folder_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        Mazes(path=str(tmp_path)).rows()
