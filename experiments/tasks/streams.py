"""Where a task's samples come from: streams of random numbers, the order of an epoch, and a held-out set apart."""

from collections.abc import Hashable, Iterator
from functools import lru_cache
from typing import TypeVar

import numpy as np

from loopgrad.experiments.tasks.making import shown

PATIENCE = 5000
"""Items in a row that may be of no use before `split_by_class` gives up."""

_Item = TypeVar("_Item")


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """Return the generator of (seed, key); different keys give independent streams.

    Raises:
        ValueError: `seed` or a number of `key` is negative.
    """
    if seed < 0 or min(key, default=0) < 0:
        raise ValueError(f"seed and step must be at least 0, got {seed} and {key}")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def step_stream(data_seed: int, seed: int, step: int, batch_size: int) -> np.random.Generator:
    """Return the generator of one training step, independent of the streams that made the data.

    Raises:
        ValueError: `seed` or `step` is negative, or `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return random_stream(data_seed, 1, seed, step)


def epoch_rows(num_samples: int, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Return which of `num_samples` samples the step's batch holds.

    The stream is one random permutation of all samples after another, cut into batches: every sample is seen once
    per epoch, and a batch may straddle two epochs.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    return np.array([epoch_order(num_samples, seed, int(it) // num_samples)[it % num_samples] for it in places])


@lru_cache(maxsize=4)
def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the random permutation of all samples of one epoch; it is kept, and must not be changed."""
    return random_stream(seed, 2, epoch).permutation(num_samples)


def split_by_class(
    items: Iterator[tuple[_Item, Hashable, Hashable]],
    num_train: int,
    num_test: int,
    rng: np.random.Generator,
    owner: str,
    what: str,
    remedy: str,
) -> tuple[list[_Item], list[_Item]]:
    """Fill a training and a test set from a stream so that no equivalence class is in both and no item comes twice.

    The first item of a class decides at random which set the class belongs to, with the odds of the places left, so
    both sets follow the stream's distribution.

    Args:
        items: Yields (item, identity, equivalence class).
        num_train: Items wanted for training.
        num_test: Items wanted for the test.
        rng: Decides the side of each class.
        owner: The task, for the message of the error.
        what: What the items are, for that message, such as "mazes of size 5".
        remedy: What to do about it but asking for fewer, such as "for a larger size".

    Raises:
        ValueError: Thousands of items in a row were repetitions, or of classes whose set is full already.
    """
    sets: tuple[list[_Item], list[_Item]] = ([], [])
    wanted = (num_train, num_test)
    side_of: dict[Hashable, int] = {}
    seen: set[Hashable] = set()
    idle = 0
    with shown(what, sum(wanted)) as tell:
        while any(len(chosen) < number for chosen, number in zip(sets, wanted, strict=True)):
            if idle >= PATIENCE:
                raise ValueError(
                    f"{owner}(num_train={num_train}, num_test={num_test}): only {len(sets[0])} and {len(sets[1])} "
                    f"different {what} were found: ask for fewer, or {remedy}"
                )
            idle += 1
            item, identity, equivalence = next(items)
            if equivalence not in side_of:
                left = [number - len(chosen) for chosen, number in zip(sets, wanted, strict=True)]
                side_of[equivalence] = int(rng.random() * sum(left) >= left[0])
            side = side_of[equivalence]
            if identity in seen or len(sets[side]) >= wanted[side]:
                continue
            seen.add(identity)
            sets[side].append(item)
            idle = 0
            tell(len(seen))
    return sets
