"""The Sudoku task: the split by equivalence class, the checker, ratings and rendering."""

import numpy as np
import pytest
import torch

from loopgrad.experiments.tasks import Sudoku
from loopgrad.experiments.tasks.sudoku_solver import solve


def digits(tokens):
    return (tokens - 1).numpy()


def test_no_4x4_test_board_is_equivalent_to_a_training_board_under_the_whole_group(witness):
    task = Sudoku(size=4, num_train=1200, num_test=500)
    train = torch.cat([task.train_batch(0, step, 100).inputs for step in range(12)])  # augmented, each puzzle once
    train_classes = set(witness.canonical_4x4(digits(train)).tolist())
    test_classes = set(witness.canonical_4x4(digits(task.test_set().inputs)).tolist())
    assert len(train_classes) > 500 and len(test_classes) > 250
    assert not train_classes & test_classes


def test_the_split_is_fair_so_givens_are_spread_alike_in_both_sets():
    task = Sudoku(size=4, num_train=2000, num_test=1000)
    train = torch.cat([task.train_batch(0, step, 100).inputs for step in range(20)])
    givens = [(inputs > 1).sum(dim=1).double() for inputs in (train, task.test_set().inputs)]
    assert abs(givens[0].mean() - givens[1].mean()) < 0.15  # uniform on 5..8: standard error of the difference 0.04


@pytest.mark.parametrize("size", [4, 6, 9])
def test_every_label_is_the_only_solution_of_its_input(size, witness):
    task = Sudoku(size=size, num_train=8, num_test=4)
    for batch in (task.train_batch(0, 0, 8), task.test_set()):
        for question, answer in zip(digits(batch.inputs).tolist(), digits(batch.labels).tolist(), strict=True):
            assert witness.solutions(question, size, limit=2) == [tuple(answer)]


def test_training_boards_are_new_images_at_every_epoch():
    task = Sudoku(size=6, num_train=10, num_test=2)
    epochs = [task.train_batch(0, step, 10).inputs for step in range(3)]
    boards = {tuple(board) for epoch in epochs for board in epoch.tolist()}
    assert len(boards) == 30
    plain = Sudoku(size=6, num_train=10, num_test=2, augment=False)
    assert len({tuple(b) for step in range(3) for b in plain.train_batch(0, step, 10).inputs.tolist()}) == 10


@pytest.mark.slow
def test_ratings_are_the_guesses_of_each_puzzle():
    task = Sudoku(size=9, num_train=12, num_test=3, min_givens=22, max_givens=26, augment=False)
    train, test = task.ratings
    assert test.tolist() == [solve(board, 9).guesses for board in digits(task.test_set().inputs).tolist()]
    assert len(train) == 12 and train.sum() > 0


def test_any_right_solution_counts_and_changed_givens_or_broken_rules_do_not():
    task = Sudoku(size=4, num_train=4, num_test=2)
    empty = torch.ones(16, dtype=torch.int64)
    grid = torch.tensor([1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1]) + 1
    rows_only = torch.tensor([1, 2, 3, 4] * 4) + 1
    columns_only = rows_only.reshape(4, 4).T.reshape(-1)
    latin = torch.tensor([1, 2, 3, 4, 2, 3, 4, 1, 3, 4, 1, 2, 4, 1, 2, 3]) + 1  # rows and columns, but not boxes
    given = empty.clone()
    given[0] = 3
    cases = [
        (empty, grid, True),
        (empty, rows_only, False),
        (empty, columns_only, False),
        (empty, latin, False),
        (given, grid, False),
        (given.where(given < 2, grid), grid, True),
        (empty, grid - 1, False),
        (empty, torch.full((16,), 77), False),
        (empty, torch.full((16,), -100), False),
    ]
    inputs, predictions, expected = zip(*cases, strict=True)
    assert task.is_solved(torch.stack(inputs), torch.stack(predictions)).tolist() == list(expected)


def test_rendering_sets_boxes_apart():
    task = Sudoku(size=6, num_train=2, num_test=1)
    inputs = torch.tensor([2, 1, 3, 4, 5, 6] + [1] * 30)
    assert task.render(inputs, inputs.where(inputs > 1, 7)).splitlines()[:3] == [
        "1 . 2 | 3 4 5   1 6 2 | 3 4 5",
        ". . . | . . .   6 6 6 | 6 6 6",
        "------+------   ------+------",
    ]


@pytest.mark.slow
def test_puzzles_that_do_not_exist_in_such_numbers_are_refused():
    with pytest.raises(ValueError, match=r"Sudoku\(num_train=9, num_test=300\).*with 16-16 givens"):
        Sudoku(size=4, num_train=9, num_test=300, min_givens=16, max_givens=16).test_set()


@pytest.mark.slow
def test_givens_too_few_to_be_found_are_refused():
    with pytest.raises(ValueError, match=r"Sudoku\(max_givens=18\).*raise max_givens"):
        Sudoku(size=9, num_train=1, num_test=1, min_givens=18, max_givens=18).test_set()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"size": 5}, r"size=...\) must be 4, 6 or 9, got 5"),
        ({"size": 4, "max_givens": 3}, r"max_givens=...\) must be in 4..16"),
        ({"size": 9, "min_givens": 82}, r"min_givens=...\) must be in 17..81"),
        ({"size": 4, "min_givens": 8, "max_givens": 6}, r"min_givens=...\) must be at most max_givens = 6"),
        ({"num_train": 0}, "num_train"),
        ({"augment": 1}, r"augment=...\) must be True or False"),
        ({"test_path": "a.txt"}, r"test_path=...\) goes with path"),
        ({"path": "a.txt", "min_givens": 5}, r"min_givens=...\) is for generated puzzles"),
    ],
)
def test_hyperparameters_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sudoku(**arguments)


def test_the_default_range_of_givens_gives_way_to_the_one_that_is_set():
    counts = (Sudoku(size=4, min_givens=10, num_train=5, num_test=5).test_set().inputs > 1).sum(dim=1)
    assert (counts == 10).all()
    counts = (Sudoku(size=6, max_givens=9, num_train=5, num_test=5).test_set().inputs > 1).sum(dim=1)
    assert (counts <= 9).all() and np.all(counts.numpy() >= 8)
