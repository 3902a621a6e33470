"""Independent seeds for each use of randomness in a run, so that an estimator's noise never moves the data."""

import dataclasses
from typing import TypeVar

import numpy as np
import torch

from loopgrad.gradients import Estimator, Scope

Drawing = TypeVar("Drawing", bound=Estimator | Scope)
USES = ("data", "weights", "dropout", "exploration", "estimator", "jacobian", "depth", "synthesiser")


def seed_for(use: str, seed: int) -> int:
    """Return the seed of one use of randomness in the run of `seed`; uses are independent of each other.

    Args:
        use: One of USES.
        seed: The run's seed, at least 0.
    """
    key = (seed, USES.index(use))
    return int(np.random.SeedSequence(key).generate_state(1, dtype=np.uint32)[0])


def seeded(estimator: Drawing, seed: int) -> Drawing:
    """Return an estimator with the noise of the run of `seed` where its own seed is None; a seed it was given stays.

    The same holds for the estimators in it, such as a fallback, and for its scope.
    """
    changed = {}
    for field in dataclasses.fields(estimator) if dataclasses.is_dataclass(estimator) else ():
        value = getattr(estimator, field.name)
        if isinstance(value, Estimator | Scope):
            if (inner := seeded(value, seed)) is not value:
                changed[field.name] = inner
        elif field.name == "seed" and value is None:
            changed[field.name] = seed_for("estimator", seed)
    return dataclasses.replace(estimator, **changed) if changed else estimator  # pyright: ignore


def generators(estimator: Estimator | Scope) -> list[torch.Generator]:
    """Return the generators that an estimator, the estimators in it and their scopes draw from."""
    found = [value for value in vars(estimator).values() if isinstance(value, torch.Generator)]
    inner = [value for value in vars(estimator).values() if isinstance(value, Estimator | Scope)]
    return found + [generator for value in inner for generator in generators(value)]
