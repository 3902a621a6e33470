"""Mazes as grids of tokens, as in the published Maze-Hard set: the rule of an answer, the symmetries of a square."""

import numpy as np

from loopgrad.experiments.tasks.shortest_path import distances

PAD, WALL, SPACE, START, GOAL, PATH = range(6)


def dihedral_images(grids: np.ndarray) -> np.ndarray:
    """Return the 8 rotations and mirrorings of square grids, (batch, n, n) -> (8, batch, n, n)."""
    turns = [np.rot90(grids, k, axes=(1, 2)) for k in range(4)]
    return np.stack(turns + [turn.swapaxes(1, 2) for turn in turns])


def image_keys(grids: np.ndarray) -> list[bytes]:
    """Return for each square grid, (batch, n, n), what those have in common that turning and mirroring makes alike."""
    images = dihedral_images(grids)
    return [min(image.tobytes() for image in images[:, i]) for i in range(len(grids))]


def marks_shortest_path(maze: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Tell which answers are their maze with some spaces marked, and these exactly the cells of a shortest path.

    Args:
        maze: Tokens, (batch, rows, columns).
        answer: The same.

    Returns:
        (batch,) bool.
    """
    marked = (maze == SPACE) & (answer == PATH)
    unchanged = ((maze == answer) | marked).all(axis=(1, 2))
    start, goal = maze == START, maze == GOAL
    shortest = _distance_to(goal, (maze == SPACE) | start | goal, start)
    along = _distance_to(goal, marked | start | goal, start)
    # as many marks as a shortest path has cells, and a path of that length through marks: so no stray mark
    return unchanged & (marked.sum(axis=(1, 2)) == shortest - 1) & (along == shortest) & (shortest > 0)


def _distance_to(goal: np.ndarray, free: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the moves from start to goal, (batch,); -1 where there is no way."""
    return np.where(goal, distances(free, start), -1).max(axis=(1, 2), initial=-1)
