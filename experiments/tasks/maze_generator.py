"""Random mazes with one shortest path each: walls by chance, then each way but one closed where it joins the path."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from loopgrad.experiments.tasks.maze_grids import GOAL, PATH, SPACE, START, WALL, image_keys
from loopgrad.experiments.tasks.shortest_path import distances

_CHUNK = 128
_CHUNKS_WITHOUT_MAZE = 200


@dataclass(frozen=True)
class MazeGenerator:
    """Draws mazes; see `Maze` for what the three numbers mean."""

    size: int
    min_path: int
    wall_fraction: float

    def stream(self, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, bytes, bytes]]:
        """Make mazes endlessly; yield (answer, its bytes, the smallest bytes of its turned and mirrored images).

        Raises:
            ValueError: Thousands of mazes in a row had no path that is long enough.
        """
        fruitless = 0
        while True:
            answers = self._answers(rng)
            fruitless = 0 if len(answers) else fruitless + 1
            if fruitless >= _CHUNKS_WITHOUT_MAZE:
                raise ValueError(
                    f"Maze(min_path={self.min_path}): of {_CHUNK * _CHUNKS_WITHOUT_MAZE} random mazes of size "
                    f"{self.size} none has a shortest path of so many moves: lower min_path, raise size, or bring "
                    "wall_fraction near 0.4"
                )
            for answer, key in zip(answers, image_keys(answers), strict=True):
                yield answer, answer.tobytes(), key

    def _answers(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a chunk of mazes; return those with a path of min_path or more, solved, (count, size, size) uint8."""
        free = rng.random((_CHUNK, self.size, self.size)) >= self.wall_fraction
        free = free[free.any(axis=(1, 2))]
        start = _draw_cells(free, rng)
        distance = distances(free, start)
        near = np.flatnonzero(distance.max(axis=(1, 2)) < self.min_path)
        if len(near):
            start[near] = _farthest(distance[near])
            distance[near] = distances(free[near], start[near])
        kept = distance.max(axis=(1, 2)) >= self.min_path
        free, start, distance = free[kept], start[kept], distance[kept]
        goal = _draw_cells(distance >= self.min_path, rng)
        answers = np.where(free, SPACE, WALL).astype(np.uint8)
        for maze, steps, end in zip(answers, distance, goal, strict=True):
            _mark_only_path(maze, steps, end, rng)
        answers[start] = START
        answers[goal] = GOAL
        return answers


def _draw_cells(allowed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one of the allowed cells of each grid, as a mask; each grid must have one."""
    return _farthest(np.where(allowed, rng.random(allowed.shape), -1.0))


def _farthest(scores: np.ndarray) -> np.ndarray:
    """Return the mask of the cell with the highest score of each grid, (batch, rows, columns)."""
    flat = scores.reshape(len(scores), scores.shape[1] * scores.shape[2])
    return (np.arange(flat.shape[1]) == flat.argmax(axis=1)[:, None]).reshape(scores.shape)


def _mark_only_path(maze: np.ndarray, distance: np.ndarray, goal: np.ndarray, rng: np.random.Generator) -> None:
    """Mark one shortest path to the goal and wall off every other, in place.

    Going back from the goal, the cells one move nearer to the start are the last cells of all shortest paths. One is
    kept as the path and the others become walls, so only one shortest path is left at each cell, down to the start.
    """
    size = len(maze)
    row, column = (int(i) for i in np.argwhere(goal)[0])
    for steps in range(int(distance[row, column]) - 1, 0, -1):
        nearer = [
            (r, c)
            for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
            if 0 <= r < size and 0 <= c < size and distance[r, c] == steps and maze[r, c] != WALL
        ]
        row, column = nearer.pop(int(rng.integers(len(nearer))))
        maze[row, column] = PATH
        for other in nearer:
            maze[other] = WALL
