"""Shortest paths on grids, many grids at once: distances and numbers of shortest paths, by breadth-first search."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Reach:
    """What a breadth-first search found.

    Attributes:
        distance: Moves from the start along a shortest path, -1 where it cannot be reached, (batch, rows, columns)
            int32.
        paths: Number of shortest paths from the start, 2 for two or more, (batch, rows, columns) uint8.
    """

    distance: np.ndarray
    paths: np.ndarray


def reach(free: np.ndarray, start: np.ndarray) -> Reach:
    """Search from the start cells by moves up, down, left and right.

    Cost:
        As many array operations as the longest shortest path has moves.

    Args:
        free: Cells that can be entered, (batch, rows, columns) bool.
        start: Cells at distance 0, (batch, rows, columns) bool; those that are not free are left out.
    """
    wave = (start & free).astype(np.uint8)
    distance = np.where(wave > 0, 0, -1).astype(np.int32)
    paths = wave.copy()
    moves = 0
    while wave.any():
        moves += 1
        # counts are capped at 2 each step, so the sum of four fits
        arriving = np.zeros_like(wave)
        arriving[:, 1:] += wave[:, :-1]
        arriving[:, :-1] += wave[:, 1:]
        arriving[:, :, 1:] += wave[:, :, :-1]
        arriving[:, :, :-1] += wave[:, :, 1:]
        wave = np.where(free & (distance < 0), np.minimum(arriving, 2), 0).astype(np.uint8)
        distance[wave > 0] = moves
        paths += wave
    return Reach(distance, paths)
