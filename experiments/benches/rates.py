"""The learning rate that each of several trainings is given: the one under which it learnt most in a trial."""

import math
from collections.abc import Hashable, Iterable
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def best_rates(trials: Iterable[tuple[Key, float, float]]) -> dict[Key, float]:
    """Return the rate of least loss for each key, of rates that are as good the lower one.

    Args:
        trials: Key, learning rate and loss at the end of each; a loss that is not finite is the worst there is.
    """
    found: dict[Key, tuple[float, float]] = {}
    for key, rate, loss in trials:
        mine = (loss if math.isfinite(loss) else math.inf, rate)
        found[key] = min(found.get(key, mine), mine)
    return {key: rate for key, (_, rate) in found.items()}
