"""Mazes as grids of tokens, laid out as in the published Maze-Hard set, and the symmetries of a square."""

import numpy as np

PAD, WALL, SPACE, START, GOAL, PATH = range(6)


def dihedral_images(grids: np.ndarray) -> np.ndarray:
    """Return the 8 rotations and mirrorings of square grids, (batch, n, n) -> (8, batch, n, n)."""
    turns = [np.rot90(grids, k, axes=(1, 2)) for k in range(4)]
    return np.stack(turns + [turn.swapaxes(1, 2) for turn in turns])


def image_keys(grids: np.ndarray) -> list[bytes]:
    """Return for each square grid, (batch, n, n), what those have in common that turning and mirroring makes alike."""
    images = dihedral_images(grids)
    return [min(image.tobytes() for image in images[:, i]) for i in range(len(grids))]
