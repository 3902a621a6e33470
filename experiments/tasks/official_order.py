"""In which order the rows of a folder of the HRM and TRM builders are trained on, and how some groups are taken.

An epoch holds each group once, by the examples of one of its puzzles that is drawn anew: as many rows as there are
puzzles before augmentation.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from loopgrad.experiments.tasks.base import Batch
from loopgrad.experiments.tasks.official_folder import Folder, Part
from loopgrad.experiments.tasks.streams import epoch_order, random_stream


@dataclass(frozen=True)
class GroupStream:
    """The rows of one training step after another.

    The order of the groups is that of `epoch_order`; the examples of a puzzle follow on one another, and a batch may
    straddle two puzzles or two epochs. (The official code begins a batch with a puzzle, and at its end leaves out what
    does not fit.)

    Attributes:
        part: The folder's train/.
        groups: Those that are trained on.
        data_seed: Decides which puzzle of a group is drawn, with the seed of the run and the epoch.
        most_puzzles: Of each group the first so many are drawn from; None: all.
    """

    part: Part
    groups: np.ndarray
    data_seed: int
    most_puzzles: int | None = None

    def rows(self, seed: int, step: int, batch_size: int) -> np.ndarray:
        """Return the rows of one step's batch, (batch_size,): a function of the arguments alone."""
        counts = self.part.examples[self.groups]
        epochs, places = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), counts.sum())
        rows = np.empty(batch_size, dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            order = epoch_order(len(self.groups), seed, epoch)
            ends = counts[order].cumsum()
            own = epochs == epoch
            slots = np.searchsorted(ends, places[own], side="right")
            chosen = order[slots]
            puzzles = self._puzzles(chosen, seed, epoch)
            rows[own] = self.part.puzzle_starts[puzzles] + places[own] - (ends[slots] - counts[chosen])
        return rows

    def _puzzles(self, chosen: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Return the puzzle of an epoch of some groups, which are told by their places among those trained on."""
        starts = self.part.group_starts
        groups = self.groups[chosen]
        sizes = starts[groups + 1] - starts[groups]
        sizes = sizes if self.most_puzzles is None else np.minimum(sizes, self.most_puzzles)
        # a number below 1 by at least 2**-53, times a size, rounds to less than the size
        draws = _draws(len(self.groups), self.data_seed, seed, epoch)[chosen]
        return starts[groups] + (draws * sizes).astype(np.int64)


@dataclass(frozen=True)
class Stored:
    """What of a folder is trained on, and what is held out.

    Attributes:
        folder: All of it.
        stream: Which rows are trained on at a step.
        test_rows: Which are held out.
    """

    folder: Folder
    stream: GroupStream
    test_rows: np.ndarray

    def test_set(self) -> Batch:
        """Return what is held out."""
        return self.folder.test.batch(self.test_rows)


@lru_cache(maxsize=4)
def _draws(num_groups: int, data_seed: int, seed: int, epoch: int) -> np.ndarray:
    return random_stream(data_seed, 4, seed, epoch).random(num_groups)


def at_most(groups: np.ndarray, number: int | None, data_seed: int) -> np.ndarray:
    """Return so many of some groups, drawn at random and in their order; all where there are no more, or for None."""
    if number is None or number >= len(groups):
        return groups
    return np.sort(random_stream(data_seed, 3, len(groups)).choice(groups, number, replace=False))
