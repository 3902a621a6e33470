"""Solves Sudoku by bitmask search on the most constrained choice, counts the guesses and tells whether it is unique.

Boards are flat sequences of size*size integers, 0 for a blank cell; boxes are 2x2 (size 4), 2x3 (6) or 3x3 (9).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_

import numpy as np

BOX_SHAPE = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # size: (rows, columns) of a box


@dataclass(frozen=True)
class Solution:
    """What the solver found out about a puzzle.

    Attributes:
        count: Number of solutions found: 0, 1, or 2 for "two or more".
        board: A solution, size*size digits; None if there is none.
        guesses: Branchings of the search that settled `count`: choices with two or more options left. 0 means that
            naked and hidden singles suffice.
    """

    count: int
    board: tuple[int, ...] | None
    guesses: int


def solve(board: Sequence[int], size: int, most_guesses: int | None = None) -> Solution:
    """Find whether a puzzle has no, one or several solutions.

    Depth-first search over 'which cells can still hold digit d', one bitmask per digit. Forced choices (a cell with one
    candidate, a digit with one place in a row, column or box) are made first; otherwise the search branches on the cell
    or the digit's place with the fewest options. It stops at the second solution.

    Cost:
        About 1 ms for an ordinary 9x9 puzzle; exponential in the worst case.

    Args:
        board: size*size integers in 0..size, 0 for a blank.
        size: 4, 6 or 9.
        most_guesses: The search is given up after so many; None for never.

    Returns:
        The number of solutions (2 means at least two), one solution, and the guesses made.

    Raises:
        ValueError: `size` is not 4, 6 or 9, `board` has another length or digits outside 0..size, or the search was
            given up.

    Example:
        >>> from loopgrad.experiments.tasks.sudoku_solver import solve
        >>> solve([1, 0, 0, 0,  0, 0, 3, 0,  0, 4, 0, 0,  0, 0, 0, 2], size=4).board
        (1, 3, 2, 4, 4, 2, 3, 1, 2, 4, 1, 3, 3, 1, 4, 2)
    """
    search = _Search(size, limit=2, most_guesses=most_guesses)
    if (places := search.places_of(board)) is not None:
        search.run(places)
    return Solution(search.count, search.board, search.guesses)


def has_other_solution(board: Sequence[int], size: int, cell: int, digit: int) -> bool:
    """Tell whether `board` has a solution with another digit than `digit` at the blank `cell`.

    Digging a hole keeps a puzzle unique exactly when this is False, which is cheaper to find than a second solution.
    """
    search = _Search(size, limit=1)
    if (places := search.places_of(board)) is not None:
        places[digit - 1] &= ~(1 << cell)
        search.run(places)
    return search.count > 0


def random_solution(size: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Draw a full grid: the first solution of the empty board with cells' options tried in random order.

    Not recommended when:
        Grids must be uniform over all grids; this search favours some.
    """
    search = _Search(size, limit=1, rng=rng)
    search.run([search.geometry.everything] * size)
    assert search.board is not None
    return search.board


@dataclass(frozen=True)
class _Geometry:
    size: int
    units: tuple[int, ...]  # bitmask of the cells of each row, column and box
    peers: tuple[int, ...]  # per cell: bitmask of the other cells that share a unit with it
    everything: int


@cache
def _geometry(size: int) -> _Geometry:
    if size not in BOX_SHAPE:
        raise ValueError(f"size must be one of {sorted(BOX_SHAPE)} (boxes 2x2, 2x3, 3x3), got {size!r}")
    height, width = BOX_SHAPE[size]
    masks: dict[tuple[str, int, int], int] = {}
    for cell in range(size * size):
        row, column = divmod(cell, size)
        for unit in (("row", row, 0), ("column", column, 0), ("box", row // height, column // width)):
            masks[unit] = masks.get(unit, 0) | 1 << cell
    units = tuple(masks.values())
    mine = [[unit for unit in units if unit >> cell & 1] for cell in range(size * size)]
    peers = tuple(reduce(or_, around) & ~(1 << cell) for cell, around in enumerate(mine))
    return _Geometry(size, units, peers, (1 << size * size) - 1)


class _Search:
    """One depth-first search; collects what it finds until `limit` solutions are known."""

    def __init__(self, size: int, limit: int, rng: np.random.Generator | None = None, most_guesses: int | None = None):
        self.geometry, self.limit, self.rng, self.most_guesses = _geometry(size), limit, rng, most_guesses
        self.count = self.guesses = 0
        self.board: tuple[int, ...] | None = None

    def places_of(self, board: Sequence[int]) -> list[int] | None:
        """Return, per digit, the bitmask of cells it may be in; None when two givens conflict."""
        size = self.geometry.size
        if len(board) != size * size:
            raise ValueError(f"board must have {size * size} cells for size {size}, got {len(board)}")
        givens, forbidden, filled = [0] * size, [0] * size, 0
        for cell, digit in enumerate(board):
            if not 0 <= digit <= size:
                raise ValueError(f"board[{cell}] must be in 0..{size} (0 is blank), got {digit}")
            if digit:
                givens[digit - 1] |= 1 << cell
                forbidden[digit - 1] |= self.geometry.peers[cell]
                filled |= 1 << cell
        if any(given & banned for given, banned in zip(givens, forbidden, strict=True)):
            return None
        free = self.geometry.everything & ~filled
        return [given | free & ~banned for given, banned in zip(givens, forbidden, strict=True)]

    def run(self, places: list[int]) -> None:
        options = self._propagate(places)
        if options is None:
            return
        if not options:
            self.count += 1
            owners = {bit: digit for digit, mask in enumerate(places, start=1) for bit in _bits(mask)}
            self.board = tuple(owners[bit] for bit in sorted(owners))
            return
        self.guesses += 1
        if self.most_guesses is not None and self.guesses > self.most_guesses:
            raise ValueError(f"whether it has one solution is not known after {self.most_guesses} guesses")
        if self.rng is not None:
            options = [options[i] for i in self.rng.permutation(len(options))]
        for cell_bit, digit in options:
            branch = places.copy()
            self._place(branch, cell_bit, digit)
            self.run(branch)
            if self.count >= self.limit:
                return

    def _place(self, places: list[int], cell_bit: int, digit: int) -> None:
        keep = ~cell_bit
        for other in range(len(places)):
            places[other] &= keep
        places[digit] = places[digit] & ~self.geometry.peers[cell_bit.bit_length() - 1] | cell_bit

    def _propagate(self, places: list[int]) -> list[tuple[int, int]] | None:
        """Make all forced choices in place; return the options to branch on, [] if solved, None if impossible."""
        everything = self.geometry.everything
        settled = 0  # cells whose digit has been removed from their peers
        while True:
            one = two = three = 0  # cells with at least one, two, three candidates
            for mask in places:
                three |= two & mask
                two |= one & mask
                one |= mask
            if one != everything:
                return None
            singles = one & ~two & ~settled
            if singles:
                for digit, mask in enumerate(places):
                    found = mask & singles
                    while found:
                        bit = found & -found
                        found ^= bit
                        if not places[digit] & bit:  # an equal single in its row, column or box came first
                            return None
                        places[digit] &= ~self.geometry.peers[bit.bit_length() - 1]
                settled |= singles
                continue
            if not two:
                return []
            options = self._fewest_places(places, two)
            if options is None:
                return None
            if len(options) == 1:
                self._place(places, *options[0])
                continue
            pair = two & ~three
            if pair:
                return self._candidates(places, pair & -pair)
            if len(options) == 2:
                return options
            return min([options, *(self._candidates(places, bit) for bit in _bits(two))], key=len)

    def _fewest_places(self, places: list[int], unsettled: int) -> list[tuple[int, int]] | None:
        """Return the (cell, digit) options of the digit and unit with the fewest places; None if one has no place."""
        best, fewest, best_digit = 0, 1 << 30, 0
        for digit, mask in enumerate(places):
            if not mask & unsettled:
                # settled everywhere; that it appears in every unit follows from every cell being distinct in its unit
                continue
            for unit in self.geometry.units:
                here = mask & unit
                if not here:
                    return None
                if here & unsettled:
                    if not here & (here - 1):
                        return [(here, digit)]
                    count = here.bit_count()
                    if count < fewest:
                        best, fewest, best_digit = here, count, digit
        return [(bit, best_digit) for bit in _bits(best)]

    def _candidates(self, places: list[int], cell_bit: int) -> list[tuple[int, int]]:
        return [(cell_bit, digit) for digit, mask in enumerate(places) if mask & cell_bit]


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        bit = mask & -mask
        mask ^= bit
        found.append(bit)
    return found
