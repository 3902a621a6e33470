"""The solver against all 288 grids of size 4 and a plain backtracking search."""

import numpy as np
import pytest

from loopgrad.experiments.tasks.sudoku_generator import make_puzzle
from loopgrad.experiments.tasks.sudoku_solver import has_other_solution, random_solution, solve


def board_of(text):
    return [0 if character in ".0" else int(character) for character in text]


def test_the_number_of_solutions_equals_enumeration_over_all_4x4_grids(witness):
    grids = witness.all_grids_4x4()
    assert len(grids) == 288
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(600):
        # givens of a grid, one of them sometimes changed, so that none, one and several solutions all occur
        board = grids[rng.integers(288)] * (rng.random(16) < rng.uniform(0.1, 0.7))
        if rng.random() < 0.5:
            board[rng.integers(16)] = rng.integers(1, 5)
        fitting = grids[((board == 0) | (grids == board)).all(axis=1)]
        solution = solve(board.tolist(), 4)
        assert solution.count == min(2, len(fitting))
        assert (solution.board is None) == (len(fitting) == 0)
        if len(fitting):
            assert solution.board in set(map(tuple, fitting.tolist()))
        seen.add(solution.count)
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("size, low, high", [(6, 6, 20), (9, 26, 65)])
def test_the_number_of_solutions_equals_plain_backtracking(size, low, high, witness):
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(40):
        board = np.array(random_solution(size, rng))
        board[rng.permutation(size * size)[rng.integers(low, high) :]] = 0
        if rng.random() < 0.3:
            board[rng.integers(size * size)] = rng.integers(1, size + 1)
        expected = witness.solutions(board.tolist(), size, limit=2)
        solution = solve(board.tolist(), size)
        assert solution.count == len(expected)
        if len(expected) == 1:
            assert solution.board == expected[0]
        seen.add(solution.count)
    assert len(seen) == 3


def test_published_boards():
    # Inkala's 2012 puzzle has one solution; Norvig's "impossible" one none, which plain searches take minutes to see
    hard = solve(board_of("8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."), 9)
    assert hard.count == 1 and hard.guesses > 10
    assert hard.board is not None and hard.board[:9] == (8, 1, 2, 7, 5, 3, 6, 4, 9)
    impossible = ".....5.8....6.1.43..........1.5........1.6...3.......553.....61........4........."
    assert solve(board_of(impossible), 9).count == 0


def test_guesses_are_zero_when_singles_suffice_and_count_branchings_otherwise(witness):
    grid = witness.all_grids_4x4()[0].tolist()
    assert solve(grid, 4).guesses == 0
    assert solve([0] + grid[1:], 4).guesses == 0
    empty = solve([0] * 16, 4)
    assert empty.count == 2 and empty.guesses >= 1


def test_one_ambiguous_rectangle_costs_one_guess():
    grid = [1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1]
    cells = [0, 1, 8, 9]  # 1 2 over 2 1 in two bands: both ways round are right
    board = [0 if cell in cells else digit for cell, digit in enumerate(grid)]
    solution = solve(board, 4)
    assert (solution.count, solution.guesses) == (2, 1)


def test_digging_check_equals_counting_solutions(witness):
    grids = witness.all_grids_4x4()
    rng = np.random.default_rng(2)
    answers = set()
    for _ in range(200):
        grid = grids[rng.integers(288)]
        board = grid * (rng.random(16) < 0.4)
        cell = int(rng.integers(16))
        board[cell] = 0
        fitting = grids[((board == 0) | (grids == board)).all(axis=1)]
        other = bool((fitting[:, cell] != grid[cell]).any())
        assert has_other_solution(board.tolist(), 4, cell, int(grid[cell])) == other
        answers.add(other)
    assert answers == {True, False}


@pytest.mark.parametrize("size, fewest, most", [(4, 4, 4), (4, 7, 9), (6, 8, 12), (9, 24, 27)])
def test_generated_puzzles_have_one_solution_and_givens_in_range(size, fewest, most, witness):
    rng = np.random.default_rng(3)
    for _ in range(8):
        puzzle = make_puzzle(size, fewest, most, rng)
        assert fewest <= sum(digit > 0 for digit in puzzle.question) <= most
        assert witness.solutions(puzzle.question, size, limit=2) == [puzzle.answer]


@pytest.mark.slow
def test_every_4x4_grid_is_generated_about_as_often_as_its_equivalents(witness):
    rng = np.random.default_rng(4)
    drawn = [make_puzzle(4, 8, 8, rng).answer for _ in range(6000)]
    counts = {answer: drawn.count(answer) for answer in set(drawn)}
    assert len(counts) == 288
    kinds = dict(
        zip(map(tuple, witness.all_grids_4x4().tolist()), witness.canonical_4x4(witness.all_grids_4x4()), strict=True)
    )
    for kind in set(kinds.values()):
        same_kind = [counts[answer] for answer, other in kinds.items() if other == kind]
        # Poisson counts: variance over mean is 1; the search alone, without a random symmetry, gives 4
        assert np.var(same_kind) / np.mean(same_kind) < 1.6


@pytest.mark.parametrize(
    "board, size, message",
    [
        ([0] * 15, 4, "16 cells"),
        ([5] + [0] * 15, 4, r"board\[0\] must be in 0..4"),
        ([0] * 25, 5, "size must be one of"),
    ],
)
def test_bad_boards_are_refused(board, size, message):
    with pytest.raises(ValueError, match=message):
        solve(board, size)
