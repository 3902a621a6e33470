"""Independent seeds for each use of randomness in a run, so that an estimator's noise never moves the data."""

import numpy as np

USES = ("data", "weights", "dropout", "exploration", "estimator", "jacobian")


def seed_for(use: str, seed: int) -> int:
    """Return the seed of one use of randomness in the run of `seed`; uses are independent of each other.

    Args:
        use: One of USES.
        seed: The run's seed, at least 0.
    """
    key = (seed, USES.index(use))
    return int(np.random.SeedSequence(key).generate_state(1, dtype=np.uint32)[0])
