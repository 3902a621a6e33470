"""The symmetries of Sudoku: draws them for augmentation, and hashes a puzzle's equivalence class under all of them.

The group permutes digits, bands, rows within a band, stacks and columns within a stack, and transposes where boxes are
square. It maps puzzles to puzzles and solutions to solutions.
"""

from dataclasses import dataclass

import numpy as np

from loopgrad.experiments.tasks.sudoku_solver import BOX_SHAPE

ROUNDS = 6  # of refinement; more can only tell more puzzles apart


@dataclass(frozen=True)
class Symmetries:
    """One group element per board.

    Attributes:
        cells: Which cell each cell's digit is taken from, (batch, size*size).
        digits: What each digit becomes; 0 (blank) stays, (batch, size + 1).
    """

    cells: np.ndarray
    digits: np.ndarray

    def apply(self, boards: np.ndarray) -> np.ndarray:
        """Transform boards, (batch, size*size), digits 0..size."""
        moved = np.take_along_axis(boards, self.cells, axis=1)
        return np.take_along_axis(self.digits, moved, axis=1)


def random_symmetries(size: int, batch_size: int, rng: np.random.Generator) -> Symmetries:
    """Draw group elements, uniform over the group (9x9: 3359232 arrangements of cells times 9! of digits)."""
    height, width = BOX_SHAPE[size]
    rows = _random_lines(size // height, height, batch_size, rng)
    columns = _random_lines(size // width, width, batch_size, rng)
    cells = rows[:, :, None] * size + columns[:, None, :]  # (batch, row, column)
    if height == width:
        flip = rng.random(batch_size) < 0.5
        cells[flip] = cells[flip].swapaxes(1, 2)
    digits = np.zeros((batch_size, size + 1), dtype=np.int64)
    digits[:, 1:] = rng.random((batch_size, size)).argsort(axis=1) + 1
    return Symmetries(cells.reshape(batch_size, -1), digits)


def _random_lines(groups: int, lines: int, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Order rows (or columns): the groups among themselves, and the lines inside each; (batch, groups * lines)."""
    order = rng.random((batch_size, groups)).argsort(axis=1)
    inside = rng.random((batch_size, groups, lines)).argsort(axis=2)
    return (order[:, :, None] * lines + inside).reshape(batch_size, -1)


def class_keys(boards: np.ndarray, size: int) -> np.ndarray:
    """Hash each puzzle's equivalence class: equivalent puzzles have equal keys.

    Colour refinement on the cells: a cell starts as given or blank, then six times its colour is hashed with the
    multisets of colours in its row, its column (unordered with the row where boxes are square), its box, its row and
    column inside the box, and the cells that hold the same given. The key hashes the multiset of final colours. Digits
    and positions enter only through these relations, which the group preserves. Inequivalent puzzles may share a key;
    then they are kept in the same set, which costs a puzzle and never leaks one.

    Cost:
        About 20 microseconds per 9x9 puzzle.

    Args:
        boards: Puzzles, (batch, size*size), digits 0..size, 0 for a blank.
        size: 4, 6 or 9.

    Returns:
        (batch,) uint64.

    Reference:
        Weisfeiler and Leman 1968.
    """
    keys = [_class_keys(boards[i : i + 8192], size) for i in range(0, len(boards), 8192)]
    return np.concatenate(keys) if keys else np.zeros(0, dtype=np.uint64)


def _class_keys(boards: np.ndarray, size: int) -> np.ndarray:
    height, width = BOX_SHAPE[size]
    square = height == width
    batch = len(boards)
    # (batch, band, row in band, stack, column in stack): each relation is a sum over some of these axes
    shape = (batch, size // height, height, size // width, width)
    given = boards > 0
    digits = boards + (size + 1) * np.arange(batch)[:, None]  # one bin per board and digit
    colour = given.astype(np.uint64).reshape(shape)
    with np.errstate(over="ignore"):  # sums are meant modulo 2**64
        for _ in range(ROUNDS):
            mixed = _mix(colour)
            row = _mix(mixed.sum(axis=(3, 4), keepdims=True), 1)
            column = _mix(mixed.sum(axis=(1, 2), keepdims=True), 1 if square else 2)
            box = _mix(mixed.sum(axis=(2, 4), keepdims=True), 3)
            box_row = _mix(mixed.sum(axis=4, keepdims=True), 4)
            box_column = _mix(mixed.sum(axis=2, keepdims=True), 4 if square else 5)
            totals = np.zeros(batch * (size + 1), dtype=np.uint64)
            np.add.at(totals, digits.ravel(), mixed.ravel())
            same = np.where(given, _mix(totals[digits], 6), np.uint64(0)).reshape(shape)
            # a line's two views are hashed together before the unordered sum, so that they stay one line's
            lines = _mix(row + _mix(box_row, 7), 8) + _mix(column + _mix(box_column, 7), 8 if square else 9)
            colour = _mix(mixed + lines + _mix(box, 10) + _mix(same, 11), 12)
        return _mix(_mix(colour.reshape(batch, -1), 13).sum(axis=1), 14)


def _mix(values: np.ndarray, salt: int = 0) -> np.ndarray:
    """Scramble 64-bit integers (the finaliser of splitmix64: Steele, Lea and Flood, 2014)."""
    values = values + np.uint64((0x9E3779B97F4A7C15 * (salt + 1)) % 2**64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
