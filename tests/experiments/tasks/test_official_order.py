"""The order of a folder's rows: beside the same written as a loop over epochs and groups, and by counting."""

import numpy as np
import official_folders
import pytest

from loopgrad.experiments.tasks.official_folder import read_folder
from loopgrad.experiments.tasks.official_order import GroupStream, at_most
from loopgrad.experiments.tasks.streams import random_stream


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """Seven tasks of two to four pairs under six augmentations."""
    return read_folder(official_folders.write_arc(tmp_path_factory.mktemp("o") / "arc", augmentations=5)).train


def looped(stream, seed, epochs):
    """The rows of whole epochs, one after the other."""
    part, rows = stream.part, []
    for epoch in range(epochs):
        order = random_stream(seed, 2, epoch).permutation(len(stream.groups))
        draws = random_stream(stream.data_seed, 4, seed, epoch).random(len(stream.groups))
        for place in order:
            first, end = part.group_starts[stream.groups[place] :][:2]
            size = end - first if stream.most_puzzles is None else min(end - first, stream.most_puzzles)
            puzzle = first + int(draws[place] * size)
            rows += range(part.puzzle_starts[puzzle], part.puzzle_starts[puzzle + 1])
    return rows


@pytest.mark.parametrize("most", [None, 2])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batches_are_slices_of_epochs_one_after_another(part, batch_size, most):
    stream = GroupStream(part, np.array([0, 2, 3, 6]), data_seed=3, most_puzzles=most)
    expected = looped(stream, 7, 12)
    steps = len(expected) // batch_size
    found = [row for step in range(steps) for row in stream.rows(7, step, batch_size).tolist()]
    assert found == expected[: steps * batch_size] and found


def test_an_epoch_has_each_group_once_by_all_examples_of_one_puzzle(part):
    stream = GroupStream(part, np.arange(part.num_groups), data_seed=0)
    length = int(part.examples.sum())
    for epoch in range(4):
        rows = stream.rows(0, epoch, length)
        puzzles, counts = np.unique(np.searchsorted(part.puzzle_starts, rows, "right") - 1, return_counts=True)
        groups = np.searchsorted(part.group_starts, puzzles, "right") - 1
        assert groups.tolist() == list(range(part.num_groups)) and counts.tolist() == part.examples.tolist()


def test_every_puzzle_of_a_group_is_drawn_as_often_as_any_other(part):
    stream = GroupStream(part, np.arange(part.num_groups), data_seed=0)
    epochs, length = 1200, int(part.examples.sum())
    drawn = np.concatenate([stream.rows(0, epoch, length) for epoch in range(epochs)])
    counts = np.bincount(drawn, minlength=len(part.inputs))
    # each row is drawn with probability 1/6 in each epoch: a standard deviation of 13 draws, of which 4.5
    assert abs(counts - epochs / 6).max() < 58


def test_other_seeds_and_limits_draw_others(part):
    groups = np.arange(part.num_groups)
    rows = [GroupStream(part, groups, data).rows(seed, 0, 40).tolist() for data, seed in ((0, 0), (1, 0), (0, 1))]
    assert rows[0] != rows[1] != rows[2] != rows[0]
    first = GroupStream(part, groups, 0, most_puzzles=1).rows(0, 0, 40)
    assert set(first) == set(part.first_rows(groups))


def test_at_most_so_many_are_taken_in_their_order():
    groups = np.array([3, 5, 8, 13, 21])
    assert at_most(groups, None, 0).tolist() == at_most(groups, 5, 0).tolist() == groups.tolist()
    taken = {tuple(at_most(groups, 2, seed)) for seed in range(40)}
    assert all(one < other for one, other in taken) and len(taken) > 5
    assert {it for pair in taken for it in pair} == set(groups)
