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


def encode(grid: np.ndarray, max_size: int) -> np.ndarray:
    """Lay a grid out as max_size * max_size tokens: colour c is c + 2, end-of-grid right and below, then padding."""
    rows, columns = grid.shape
    tokens = np.full((max_size, max_size), PAD, dtype=np.int64)
    tokens[:rows, :columns] = grid + FIRST_COLOUR
    if rows < max_size:
        tokens[rows, :columns] = EOS
    if columns < max_size:
        tokens[:rows, columns] = EOS
    return tokens.reshape(-1)


def decode(tokens: np.ndarray, max_size: int) -> np.ndarray:
    """Read a grid off tokens: the largest rectangle at the top left that holds only colours; empty if there is none.

    What stands beyond the end-of-grid tokens does not matter: padding is not scored, so a model may write anything
    there.
    """
    grid = np.asarray(tokens).reshape(max_size, max_size)
    coloured = (grid >= FIRST_COLOUR) & (grid < FIRST_COLOUR + NUM_COLOURS)
    # columns that are coloured without a gap in all rows up to and with each
    widths = np.minimum.accumulate(np.logical_and.accumulate(coloured, axis=1).sum(axis=1))
    areas = widths * np.arange(1, max_size + 1)
    rows = int(areas.argmax()) + 1
    return grid[:rows, : widths[rows - 1]] - FIRST_COLOUR if areas.max() else np.zeros((0, 0), dtype=np.int64)
