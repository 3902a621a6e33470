"""ARC of a folder of the HRM and TRM builders: a group is a task under its stored augmentations, an identity each."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from loopgrad.experiments.tasks.arc_grids import FIRST_COLOUR, NUM_COLOURS, PAD, decode
from loopgrad.experiments.tasks.base import Batch
from loopgrad.experiments.tasks.official_folder import Part, read_folder
from loopgrad.experiments.tasks.official_order import GroupStream, Stored, at_most
from loopgrad.experiments.tasks.streams import random_stream

_AT_ONCE = 2**22  # tokens that are hashed at once


@dataclass(frozen=True)
class StoredGrids(Stored):
    """Pairs of a folder."""

    def train_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Return the pairs of a step."""
        return self.folder.train.batch(self.stream.rows(seed, step, batch_size))

    def labels_of(self, question: np.ndarray) -> list[np.ndarray]:
        """Return the labels of all held-out pairs with this input, (seq_len,); where there are none, of training's."""
        for part, rows in ((self.folder.test, self._held_out), (self.folder.train, self._trained)):
            if found := rows.equal_to(question):
                return [part.labels[row] for row in found]
        return []

    @cached_property
    def _held_out(self) -> "_RowsByContent":
        return _RowsByContent.of(self.folder.test, self.test_rows)

    @cached_property
    def _trained(self) -> "_RowsByContent":
        return _RowsByContent.of(self.folder.train, np.arange(len(self.folder.train.inputs)))


@dataclass(frozen=True)
class _RowsByContent:
    """Rows of a part in the order of hashes of their inputs; 16 bytes a row, however many tokens it has."""

    part: Part
    weights: np.ndarray
    hashes: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, part: Part, rows: np.ndarray) -> "_RowsByContent":
        seq_len = part.figures.seq_len
        weights = random_stream(0).integers(0, 2**64, seq_len, dtype=np.uint64)
        step = max(1, _AT_ONCE // seq_len)
        parts = [_hashes(part.inputs[rows[start : start + step]], weights) for start in range(0, len(rows), step)]
        hashes = np.concatenate(parts)
        order = hashes.argsort(kind="stable")
        return cls(part, weights, hashes[order], rows[order])

    def equal_to(self, question: np.ndarray) -> list[int]:
        (wanted,) = _hashes(question[None], self.weights)
        first, end = (np.searchsorted(self.hashes, wanted, side) for side in ("left", "right"))
        return [row for row in self.rows[first:end].tolist() if np.array_equal(self.part.inputs[row], question)]


def _hashes(tokens: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return tokens.astype(np.uint64) @ weights  # modulo 2**64


def read_grids(path: str, max_size: int, num_augmentations: int, max_tasks: int | None, data_seed: int) -> StoredGrids:
    """Read and check a folder.

    Args:
        path: The folder.
        max_size: Tokens per side that it must have.
        num_augmentations: Stored augmentations of a task to train on at most.
        max_tasks: Tasks with held-out pairs, and others, at most; None: all.
        data_seed: Decides which ones.

    Raises:
        ValueError: The folder is malformed, or of another size; names the file.
    """
    folder = read_folder(path)
    figures = folder.figures
    for name, value in (("seq_len", max_size**2), ("vocab_size", FIRST_COLOUR + NUM_COLOURS)):
        if (found := getattr(figures, name)) != value:
            raise ValueError(f"{figures.path}: {name} is {found}, and {value} for ARC with max_size={max_size}")
    folder.check_rows(lambda inputs, labels: _faults(inputs, labels, max_size))
    test = at_most(np.arange(folder.test.num_groups), max_tasks, data_seed)
    # a task has the same identity in both parts
    held, own = (part.puzzle_ids[part.group_starts[:-1]] for part in (folder.test, folder.train))
    with_held = np.isin(own, held[test])
    others = at_most(np.flatnonzero(~np.isin(own, held)), max_tasks, data_seed)
    groups = np.sort(np.concatenate([np.flatnonzero(with_held), others]))
    stream = GroupStream(folder.train, groups, data_seed, num_augmentations + 1)
    return StoredGrids(folder, stream, folder.test.first_rows(test))


def grid_at(label: np.ndarray, tokens: np.ndarray, max_size: int) -> np.ndarray:
    """Read a grid off tokens, (seq_len,), that begins where the grid of a label begins."""
    coloured = label.reshape(max_size, max_size) >= FIRST_COLOUR
    down, right = int(coloured.any(axis=1).argmax()), int(coloured.any(axis=0).argmax())
    moved = np.full((max_size, max_size), PAD, dtype=np.int64)
    moved[: max_size - down, : max_size - right] = tokens.reshape(max_size, max_size)[down:, right:]
    return decode(moved, max_size)


def _faults(inputs: np.ndarray, labels: np.ndarray, max_size: int) -> Iterator[tuple[str, np.ndarray, str]]:
    for name, tokens in (("inputs", inputs), ("labels", labels)):
        coloured = tokens.reshape(-1, max_size, max_size) >= FIRST_COLOUR
        sides, spans = [], []
        for axis in (2, 1):
            lines = np.asarray(coloured.any(axis=axis))
            sides.append(lines.sum(axis=1))
            spans.append(max_size - lines[:, ::-1].argmax(axis=1) - lines.argmax(axis=1))
        cells = np.count_nonzero(coloured.reshape(len(tokens), -1), axis=1)
        whole = (sides[0] == spans[0]) & (sides[1] == spans[1]) & (cells == sides[0] * sides[1]) & (cells > 0)
        yield name, ~whole, "its colours, tokens from 2 up, are no rectangle"
