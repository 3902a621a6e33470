"""Mazes: random walls on a square grid, a start and a goal with exactly one shortest path, which is the answer."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from loopgrad.experiments.tasks.base import Batch, Task, TokenSpec, batch_of, beside
from loopgrad.experiments.tasks.maze_generator import MazeGenerator
from loopgrad.experiments.tasks.maze_grids import GOAL, PATH, SPACE, START, dihedral_images, marks_shortest_path
from loopgrad.experiments.tasks.official_maze import StoredMazes, read_mazes
from loopgrad.experiments.tasks.shortest_path import count_paths
from loopgrad.experiments.tasks.streams import epoch_rows, random_stream, split_by_class, step_stream
from loopgrad.gradients.checks import is_number

_SIZE, _WALL_FRACTION = 10, 0.35


@dataclass(frozen=True)
class Maze(Task):
    """Mark the shortest path from S to G; moves go up, down, left and right.

    Each cell is a wall with probability `wall_fraction`. A start is drawn among the free cells, and replaced by the
    cell farthest from it if no goal is `min_path` moves away; a goal is drawn among those that are. Random walls leave
    many shortest paths, so one is drawn and each other is closed by a wall where it joins. Tokens as in the published
    Maze-Hard set: pad, wall, space, start, goal, path; the answer is the maze with the spaces on the path marked. With
    `path` mazes are read from the folder that an official builder wrote: none of Maze-Hard has a single shortest path,
    any of which solves it.

    Cost:
        Generating 1500 mazes takes about a second up to size 30; paths much longer than the size are rare and take
        longer (0.2 s per maze of size 30 with min_path=110). Checking a folder takes about 0.5 ms per maze of size 30.
    Not recommended when:
        Published Maze-Hard numbers are to be compared, unless its folder is read, or walls must be independent of the
        path (the closing walls stand beside it).

    Attributes:
        size: Rows and columns, 2 to 512. With `path` those of its mazes.
        min_path: Fewest moves from start to goal; None: `size`. Not with `path`.
        wall_fraction: Probability of a wall, in [0, 1); most long paths at 0.35 to 0.4. Not with `path`.
        num_train: Training mazes. Of a folder at most so many groups.
        num_test: Test mazes; none is a rotated or mirrored training maze. Of a folder at most so many.
        augment: Whether training mazes are rotated and mirrored at random, those of a folder beside the images that are
            stored there.
        data_seed: Decides the mazes, or which of a folder.
        shared_puzzle: Whether all have one identity, which gives models puzzle tokens, as in the published code.
        path: Folder that an official builder wrote, see `official_folder.read_folder`: an epoch has of each group, a
            maze or its stored images, a random one, which with augment=False is as published. None generates.

    Raises:
        ValueError: A hyperparameter is out of range; at first use: mazes with such paths are too rare or too few, or
            the folder is malformed.

    Reference:
        Lehnert et al. 2024, arXiv 2402.14083 (random walls); Wang et al. 2025, arXiv 2506.21734 (Maze-Hard).

    Example:
        >>> from loopgrad.experiments.tasks import Maze
        >>> task = Maze(size=6, num_train=8, num_test=2)
        >>> test = task.test_set()
        >>> task.is_solved(test.inputs, test.labels).tolist()
        [True, True]
    """

    size: int = _SIZE
    min_path: int | None = None
    wall_fraction: float = _WALL_FRACTION
    num_train: int = 1000
    num_test: int = 500
    augment: bool = True
    data_seed: int = 0
    shared_puzzle: bool = False
    path: str | None = None

    references = ("lehnert2024beyond", "wang2025hierarchical")

    def __post_init__(self) -> None:
        self.check_int("size", 2, 512)
        for name, default in (("min_path", None), ("wall_fraction", _WALL_FRACTION)):
            if self.path is not None and getattr(self, name) != default:
                raise ValueError(f"Maze({name}=...) is for generated mazes: leave it out with path=...")
        self.check_int("min_path", 1, self.size**2 - 1, optional=True)
        if not is_number(self.wall_fraction):
            raise ValueError(f"Maze(wall_fraction=...) must be a number in [0, 1), got {self.wall_fraction!r}")
        if not 0 <= self.wall_fraction < 1:
            raise ValueError(f"Maze(wall_fraction=...) must be in [0, 1), got {self.wall_fraction}")
        self.check_int("num_train", 1)
        self.check_int("num_test", 1)
        self.check_flag("augment")
        self.check_flag("shared_puzzle")
        self.check_int("data_seed", 0)

    @property
    def spec(self) -> TokenSpec:
        """Pad, wall, space, start, goal, path."""
        return TokenSpec(("pad", "#", " ", "S", "G", "o"), self._side**2, int(self.shared_puzzle))

    def train_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Return the step's share of the epoch's mazes, each rotated and mirrored afresh."""
        rng = step_stream(self.data_seed, seed, step, batch_size)
        if self._stored is not None:
            answers = self._stored.train(seed, step, batch_size)
        else:
            train = self._mazes[0]
            answers = train[epoch_rows(len(train), seed, step, batch_size)]
        if self.augment:
            images = dihedral_images(answers)  # (8, batch, size, size)
            answers = images[rng.integers(0, 8, batch_size), np.arange(batch_size)]
        return self._batch(answers)

    def test_set(self) -> Batch:
        """Return the held-out mazes, untransformed."""
        return self._batch(self._mazes[1]) if self._stored is None else self._stored.test_set()

    def is_solved(self, inputs: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
        """Judge whether the maze is unchanged but for spaces marked as path, and these are exactly a shortest path."""
        self.check_tokens(inputs, predictions)
        maze = inputs.cpu().numpy().reshape(-1, self._side, self._side)
        answer = predictions.cpu().numpy().reshape(maze.shape)
        return torch.from_numpy(marks_shortest_path(maze, answer)).to(inputs.device)

    def count_shortest_paths(self, inputs: torch.Tensor) -> list[int]:
        """Count the shortest paths from start to goal of each maze, (batch, seq_len) tokens; 0 where there is none.

        Generated mazes have one. The counts are exact, whatever their size: an open square of 30 has more than a float
        can hold.

        Raises:
            ValueError: A maze has not one start and one goal, or inputs are no tokens of this task.
        """
        self.check_tokens(inputs, inputs)
        maze = inputs.cpu().numpy().reshape(-1, self._side, self._side)
        start, goal = maze == START, maze == GOAL
        for row, counts in enumerate(zip(start.sum(axis=(1, 2)), goal.sum(axis=(1, 2)), strict=True)):
            if counts != (1, 1):
                raise ValueError(f"inputs[{row}] has {counts[0]} starts and {counts[1]} goals, and a maze has one each")
        return count_paths((maze == SPACE) | start | goal, start, goal)

    def render(self, inputs: torch.Tensor, answer: torch.Tensor) -> str:
        """Show maze and answer side by side."""
        blocks = []
        for tokens in (inputs, answer):
            symbols = [it if len(it) == 1 else "_" for it in self.symbols_of(tokens)]  # an answer may hold "pad"
            blocks.append(["".join(symbols[i : i + self._side]) for i in range(0, len(symbols), self._side)])
        return beside(*blocks)

    def _batch(self, answers: np.ndarray) -> Batch:
        inputs = np.where(answers == PATH, SPACE, answers)
        return batch_of(inputs.reshape(len(answers), -1), answers.reshape(len(answers), -1))

    @cached_property
    def _stored(self) -> StoredMazes | None:
        """What the folder holds; None if there is none."""
        if self.path is None:
            return None
        stored = read_mazes(self.path, self.num_train, self.num_test, self.data_seed)
        if self.size not in (_SIZE, stored.size):
            raise ValueError(
                f"Maze(size={self.size}): the mazes of {self.path} are of size {stored.size}: leave size out with path"
            )
        return stored

    @property
    def _side(self) -> int:
        return self.size if self._stored is None else self._stored.size

    @cached_property
    def _mazes(self) -> tuple[np.ndarray, np.ndarray]:
        rng, what = random_stream(self.data_seed, 0), f"mazes of size {self.size}"
        stream = MazeGenerator(self.size, self._min_path, self.wall_fraction).stream(rng)
        train, test = split_by_class(stream, self.num_train, self.num_test, rng, "Maze", what, "for a larger size")
        return np.stack(train), np.stack(test)

    @property
    def _min_path(self) -> int:
        return self.size if self.min_path is None else self.min_path
