"""Endless streams of random token sequences that never show a held-out sequence in training."""

from functools import lru_cache

import numpy as np

from loopgrad.experiments.tasks.base import check_int, random_stream, step_stream


def num_held_out(owner: str, vocab_size: int, length: int, num_test: int | None) -> int:
    """Return how many sequences are held out: `num_test`; for None 512, or a quarter of all if that is fewer.

    Raises:
        ValueError: `num_test` is below 1, or more than half of all vocab_size**length sequences would be held out.
    """
    if num_test is None:
        return min(512, max(1, vocab_size**length // 4))
    check_int(owner, "num_test", num_test, 1)
    if 2 * num_test > vocab_size**length:
        raise ValueError(
            f"{owner}(num_test=...) holds out {num_test} of {vocab_size}**{length} = {vocab_size**length} sequences; "
            "at most half may be: lower num_test or raise length"
        )
    return num_test


@lru_cache(maxsize=8)
def held_out(vocab_size: int, length: int, num_test: int, data_seed: int) -> np.ndarray:
    """Return `num_test` distinct random sequences, (num_test, length), the same for the same arguments."""
    rng = random_stream(data_seed, 0)
    found: dict[bytes, np.ndarray] = {}
    while len(found) < num_test:
        for sequence in rng.integers(0, vocab_size, (num_test - len(found), length)):
            found.setdefault(sequence.tobytes(), sequence)
    sequences = np.stack(list(found.values()))
    sequences.flags.writeable = False  # shared by every caller
    return sequences


def training_sequences(
    vocab_size: int, length: int, held: np.ndarray, data_seed: int, seed: int, step: int, batch_size: int
) -> np.ndarray:
    """Return the sequences of one training step, (batch_size, length), uniform over those that are not held out."""
    rng = step_stream(data_seed, seed, step, batch_size)
    sequences = rng.integers(0, vocab_size, (batch_size, length))
    forbidden = _as_scalars(held)
    while (again := np.isin(_as_scalars(sequences), forbidden)).any():
        sequences[again] = rng.integers(0, vocab_size, (int(again.sum()), length))
    return sequences


def _as_scalars(sequences: np.ndarray) -> np.ndarray:
    # one opaque value per row, so that whole rows can be looked up
    rows = np.ascontiguousarray(sequences)
    return rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
