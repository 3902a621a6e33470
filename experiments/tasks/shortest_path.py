"""Shortest paths on grids, many grids at once, by breadth-first search."""

import numpy as np


def distances(free: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the moves up, down, left and right of a shortest path from the start cells to every cell.

    Cost:
        As many array operations as the longest shortest path has moves.

    Args:
        free: Cells that can be entered, (batch, rows, columns) bool.
        start: Cells at distance 0, (batch, rows, columns) bool; those that are not free are left out.

    Returns:
        (batch, rows, columns) int32; -1 where a cell cannot be reached.
    """
    wave = start & free
    found = np.where(wave, 0, -1).astype(np.int32)
    moves = 0
    while wave.any():
        moves += 1
        arriving = np.zeros_like(wave)
        arriving[:, 1:] |= wave[:, :-1]
        arriving[:, :-1] |= wave[:, 1:]
        arriving[:, :, 1:] |= wave[:, :, :-1]
        arriving[:, :, :-1] |= wave[:, :, 1:]
        wave = arriving & free & (found < 0)
        found[wave] = moves
    return found
