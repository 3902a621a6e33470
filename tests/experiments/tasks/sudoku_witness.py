"""Slow and plain witnesses for Sudoku: rules, a solver, all 4x4 grids, and the whole 4x4 symmetry group."""

import itertools

import numpy as np

BOX = {4: (2, 2), 6: (2, 3), 9: (3, 3)}


def unit_sets(size):
    height, width = BOX[size]
    rows = [[(r, c) for c in range(size)] for r in range(size)]
    columns = [[(r, c) for r in range(size)] for c in range(size)]
    boxes = [
        [(r + i, c + j) for i in range(height) for j in range(width)]
        for r in range(0, size, height)
        for c in range(0, size, width)
    ]
    return rows + columns + boxes


def obeys(board, size):
    return all(sorted(board[r * size + c] for r, c in unit) == list(range(1, size + 1)) for unit in unit_sets(size))


def solutions(board, size, limit=10):
    """All solutions by trying every digit in the blank with the fewest that do not clash."""
    board = list(board)
    peers = [
        {r * size + c for unit in unit_sets(size) if divmod(cell, size) in unit for r, c in unit} - {cell}
        for cell in range(size * size)
    ]
    found = []

    def search():
        best = None
        for cell in range(size * size):
            if board[cell] == 0:
                options = set(range(1, size + 1)) - {board[p] for p in peers[cell]}
                if best is None or len(options) < len(best[1]):
                    best = cell, options
        if best is None:
            found.append(tuple(board))
            return
        for digit in sorted(best[1]):
            board[best[0]] = digit
            search()
            if len(found) >= limit:
                break
        board[best[0]] = 0

    if all(board[cell] == 0 or board[cell] not in {board[p] for p in peers[cell]} for cell in range(size * size)):
        search()
    return found


def all_grids_4x4():
    """The 288 grids, by trying all orders of each row."""
    rows = list(itertools.permutations(range(1, 5)))
    grids = []
    for four in itertools.product(rows, repeat=4):
        if all(len({row[c] for row in four}) == 4 for c in range(4)):
            board = sum(four, ())
            if obeys(board, 4):
                grids.append(board)
    return np.array(grids)


def canonical_4x4(boards):
    """The smallest number among all 128 * 24 images of each board, read as base-5 digits."""
    lines = [
        order
        for order in itertools.permutations(range(4))
        if {order[0] // 2, order[1] // 2} in ({0}, {1})  # lines of a band stay together
    ]
    assert len(lines) == 8
    moves = []
    for rows, columns in itertools.product(lines, lines):
        cells = np.array([[4 * r + c for c in columns] for r in rows])
        moves += [cells.ravel(), cells.T.ravel()]
    best = np.full(len(boards), 5**16)
    for move in moves:
        moved = boards[:, move]
        for digits in itertools.permutations(range(1, 5)):
            best = np.minimum(best, np.array((0, *digits))[moved] @ 5 ** np.arange(16))
    return best
