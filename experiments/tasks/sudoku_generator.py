"""Makes Sudoku puzzles with one solution: a random full grid, dug in random order while the solution stays unique."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from loopgrad.experiments.tasks.sudoku_solver import has_other_solution, random_solution
from loopgrad.experiments.tasks.symmetry import class_keys, random_symmetries

# no puzzle with fewer givens has one solution (9x9: McGuire et al. 2012, 1201.0749)
FEWEST_GIVENS = {4: 4, 6: 8, 9: 17}
DEFAULT_GIVENS = {4: (5, 8), 6: (10, 16), 9: (24, 32)}
_TRIES = 200
_CHUNK = 64


@dataclass(frozen=True)
class Puzzle:
    """A puzzle and its only solution, size*size digits each, 0 for a blank."""

    question: tuple[int, ...]
    answer: tuple[int, ...]


def make_puzzle(size: int, min_givens: int, max_givens: int, rng: np.random.Generator) -> Puzzle:
    """Make one puzzle with min_givens..max_givens givens; how many is drawn uniformly, digging permitting.

    Cost:
        About 0.2 ms (4x4), 1.5 ms (6x6), 10-20 ms (9x9).

    Raises:
        ValueError: No grid of 200 could be dug down to `max_givens` with one solution left.
    """
    for _ in range(_TRIES):
        # the search favours some grids; a random symmetry makes the equivalent ones equally likely
        grid = np.array([random_solution(size, rng)])
        answer = tuple(random_symmetries(size, 1, rng).apply(grid)[0].tolist())
        board = list(answer)
        givens, target = size * size, int(rng.integers(min_givens, max_givens + 1))
        for cell in rng.permutation(size * size).tolist():
            if givens == target:
                break
            board[cell] = 0
            if has_other_solution(board, size, cell, answer[cell]):
                board[cell] = answer[cell]
            else:
                givens -= 1
        if givens <= max_givens:
            return Puzzle(tuple(board), answer)
    raise ValueError(
        f"Sudoku(max_givens={max_givens}): {_TRIES} grids were dug and none keeps one solution with so few givens: "
        f"raise max_givens (the default for size {size} is {DEFAULT_GIVENS[size][1]})"
    )


def puzzle_stream(
    size: int, min_givens: int, max_givens: int, rng: np.random.Generator
) -> Iterator[tuple[Puzzle, tuple[int, ...], int]]:
    """Make puzzles endlessly; yield (puzzle, its board, the key of its equivalence class)."""
    while True:
        puzzles = [make_puzzle(size, min_givens, max_givens, rng) for _ in range(_CHUNK)]  # keys are cheaper in bulk
        keys = class_keys(np.array([puzzle.question for puzzle in puzzles]), size)
        for puzzle, key in zip(puzzles, keys.tolist(), strict=True):
            yield puzzle, puzzle.question, key
