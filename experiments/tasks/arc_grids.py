"""ARC grids: symmetries, the key of a pair under them, and the padded token layout of the published code."""

import numpy as np

PAD, EOS, FIRST_COLOUR = 0, 1, 2
NUM_COLOURS = 10


def check_grid(grid: np.ndarray, whose: str) -> None:
    """Raise ValueError if a grid is no rectangle of colours."""
    if grid.ndim != 2 or not grid.size or grid.dtype.kind not in "iu" or grid.min() < 0 or grid.max() >= NUM_COLOURS:
        raise ValueError(f"{whose} has a grid that is no rectangle of colours 0 to {NUM_COLOURS - 1}")


def turned(grid: np.ndarray, turn: int) -> np.ndarray:
    """Rotate by turn % 4 quarter turns, then transpose if turn >= 4; turn in 0..7, 0 changes nothing."""
    rotated = np.rot90(grid, turn % 4)
    return rotated.T if turn >= 4 else rotated


def unturned(grid: np.ndarray, turn: int) -> np.ndarray:
    """Undo `turned`."""
    return np.rot90(grid.T if turn >= 4 else grid, -(turn % 4))


def swaps_sides(turns: np.ndarray) -> np.ndarray:
    """Tell of each turn whether rows become columns."""
    return (turns % 2 == 1) != (turns >= 4)


def pair_key(question: np.ndarray, answer: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    """Return a key that two pairs share exactly when turning, mirroring and recolouring maps one to the other.

    Colour 0 keeps its name. Of the 8 images, each with its colours numbered in the order they first appear, the first
    in lexicographic order is the key.
    """
    keys = []
    for turn in range(8):
        grids = turned(question, turn), turned(answer, turn)
        flat = np.concatenate([grid.ravel() for grid in grids])
        _, first = np.unique(flat, return_index=True)
        names = np.zeros(NUM_COLOURS, dtype=np.uint8)
        colours = [colour for colour in flat[np.sort(first)] if colour]
        names[colours] = np.arange(1, len(colours) + 1)
        keys.append((grids[0].shape + grids[1].shape, names[flat].tobytes()))
    return min(keys)


def encode(grid: np.ndarray, max_size: int, corner: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Lay a grid out as max_size * max_size tokens: colour c is c + 2, end-of-grid right and below, padding around.

    `corner` is the row and column of its first cell; the grid must fit.
    """
    rows, columns = grid.shape
    tokens = np.full((max_size, max_size), PAD, dtype=np.int64)
    inside = tokens[corner[0] :, corner[1] :]
    inside[:rows, :columns] = grid + FIRST_COLOUR
    # both are empty where the grid reaches the border
    inside[rows : rows + 1, :columns] = EOS
    inside[:rows, columns : columns + 1] = EOS
    return tokens.reshape(-1)


def corner_of(tokens: np.ndarray, max_size: int) -> tuple[int, int]:
    """Return the row and column at which a grid that `encode` laid out begins; (0, 0) if all is padding."""
    filled = np.asarray(tokens).reshape(max_size, max_size) != PAD
    return int(filled.any(axis=1).argmax()), int(filled.any(axis=0).argmax())


def decode(tokens: np.ndarray, max_size: int, corner: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Read a grid off tokens: the largest rectangle from `corner` on that holds only colours; empty if there is none.

    Of rectangles of one area the one with fewest rows. What stands beyond the end-of-grid tokens does not matter:
    padding is not scored, so a model may write anything there.
    """
    grid = np.asarray(tokens).reshape(max_size, max_size)[corner[0] :, corner[1] :]
    coloured = (grid >= FIRST_COLOUR) & (grid < FIRST_COLOUR + NUM_COLOURS)
    # columns that are coloured without a gap in all rows up to and with each
    widths = np.minimum.accumulate(np.logical_and.accumulate(coloured, axis=1).sum(axis=1))
    areas = widths * np.arange(1, len(grid) + 1)
    rows = int(areas.argmax()) + 1
    return grid[:rows, : widths[rows - 1]] - FIRST_COLOUR if areas.max() else np.zeros((0, 0), dtype=np.int64)
