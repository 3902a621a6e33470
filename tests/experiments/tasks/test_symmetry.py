"""The symmetry group of Sudoku and the class keys, against the whole 4x4 group written out."""

import numpy as np
import pytest

from loopgrad.experiments.tasks.sudoku_generator import DEFAULT_GIVENS, make_puzzle
from loopgrad.experiments.tasks.symmetry import class_keys, random_symmetries


def puzzles(size, count, seed=0):
    rng = np.random.default_rng(seed)
    made = [make_puzzle(size, *DEFAULT_GIVENS[size], rng) for _ in range(count)]
    return np.array([p.question for p in made]), np.array([p.answer for p in made])


@pytest.mark.parametrize("size", [4, 6, 9])
def test_symmetries_map_solutions_to_solutions_and_puzzles_to_puzzles(size, witness):
    questions, answers = puzzles(size, 20)
    symmetries = random_symmetries(size, 20, np.random.default_rng(1))
    moved, solved = symmetries.apply(questions), symmetries.apply(answers)
    assert (moved != questions).any(axis=1).all()
    for question, answer, before in zip(moved.tolist(), solved.tolist(), questions, strict=True):
        assert witness.obeys(answer, size)
        assert all(q in (0, a) for q, a in zip(question, answer, strict=True))
        assert sum(q > 0 for q in question) == (before > 0).sum()


def test_all_128_arrangements_of_4x4_cells_and_all_24_of_digits_are_drawn_and_no_other(witness):
    symmetries = random_symmetries(4, 4000, np.random.default_rng(2))
    arrangements = {tuple(cells) for cells in symmetries.cells.tolist()}
    assert len(arrangements) == 128
    assert len({tuple(digits) for digits in symmetries.digits.tolist()}) == 24
    board = np.arange(16) % 5
    images = np.stack([board[list(cells)] for cells in arrangements])
    assert len(set(witness.canonical_4x4(images).tolist())) == 1


def test_6x6_boards_are_never_transposed():
    symmetries = random_symmetries(6, 500, np.random.default_rng(3))
    row_of = symmetries.cells.reshape(500, 6, 6) // 6  # cells of a row come from one row
    assert (row_of == row_of[:, :, :1]).all()
    assert len({tuple(c) for c in symmetries.cells.tolist()}) > 450  # of 48 * 72 = 3456


@pytest.mark.parametrize("size", [4, 6, 9])
def test_equivalent_puzzles_have_equal_keys(size):
    questions, _ = puzzles(size, 30)
    keys = class_keys(questions, size)
    rng = np.random.default_rng(4)
    for _ in range(10):
        assert (class_keys(random_symmetries(size, 30, rng).apply(questions), size) == keys).all()


@pytest.mark.slow
def test_keys_tell_apart_what_the_whole_4x4_group_tells_apart_but_for_a_few(witness):
    questions, _ = puzzles(4, 3000)
    keys, canonical = class_keys(questions, 4), witness.canonical_4x4(questions)
    pairs = set(zip(keys.tolist(), canonical.tolist(), strict=True))
    assert len(pairs) == len(set(canonical.tolist()))  # each class has one key
    assert len(set(keys.tolist())) >= 0.99 * len(pairs)  # few classes share one


@pytest.mark.parametrize("size", [6, 9])
def test_taking_one_given_away_changes_the_key(size):
    questions, _ = puzzles(size, 30)
    fewer = questions.copy()
    for board in fewer:
        board[np.flatnonzero(board)[0]] = 0
    keys = np.concatenate([class_keys(questions, size), class_keys(fewer, size)])
    assert len(set(keys.tolist())) == 60


def test_keys_do_not_depend_on_the_batch():
    questions, _ = puzzles(6, 20)
    alone = np.concatenate([class_keys(board[None], 6) for board in questions])
    assert (class_keys(questions, 6) == alone).all()
    assert (class_keys(np.tile(questions, (500, 1)), 6) == np.tile(alone, 500)).all()  # more than one chunk
    assert class_keys(questions[:0], 6).shape == (0,)
