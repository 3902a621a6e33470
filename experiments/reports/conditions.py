"""Records of one condition, over seeds: the same task, model, estimator and step of training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loopgrad.analysis import bootstrap_interval, wilson_interval
from loopgrad.analysis.verdicts import LABELS
from loopgrad.experiments.records import WeightsRecord


@dataclass(frozen=True)
class Condition:
    """What differs in the seed alone.

    Attributes:
        trained: Group and estimator, such as "sudoku4/bptt".
        step: Optimiser steps; None where not known.
        records: One per seed.
    """

    trained: str
    step: int | None
    records: tuple[WeightsRecord, ...]

    @property
    def name(self) -> str:
        """Return "sudoku4/bptt@200"."""
        return self.trained if self.step is None else f"{self.trained}@{self.step}"


def conditions(records: Sequence[WeightsRecord]) -> list[Condition]:
    """Return the conditions of records, by first appearance, steps in increasing order."""
    found: dict[tuple[str, int | None], list[WeightsRecord]] = {}
    for record in records:
        trained = f"{record['group']}/{record['estimator']}" if record["estimator"] else record["name"]
        found.setdefault((trained, record["step"]), []).append(record)
    order = list(dict.fromkeys(trained for trained, _ in found))
    keys = sorted(found, key=lambda key: (order.index(key[0]), key[1] or 0))
    return [Condition(trained, step, tuple(found[trained, step])) for trained, step in keys]


def at_last(found: Sequence[Condition]) -> list[Condition]:
    """Return the latest step of each."""
    return list({condition.trained: condition for condition in found}.values())


def gaps_by_outcome(record: WeightsRecord) -> list[dict[str, Any]]:
    """Return the gradients of solved and of unsolved samples that are all numbers."""
    keys = ("residual_q50", "cosine", "relative_error")
    return [it for it in record.get("gaps", []) if it["samples"] != "all" and None not in [it[key] for key in keys]]


def outcomes(condition: Condition, depth: int, stream: str = "joint") -> dict[str, dict[str, int]]:
    """Return the number of samples per label, over all seeds, of the solved and of the unsolved."""
    labels, solved = _samples(condition, depth, stream)
    masks = {"solved": solved, "unsolved": ~solved}
    return {
        name: {label: int((labels[mask] == i).sum()) for i, label in enumerate(LABELS) if (labels[mask] == i).any()}
        for name, mask in masks.items()
    }


@dataclass(frozen=True)
class Settled:
    """How many of some samples converged, and how sure that is.

    Attributes:
        count: Converged samples.
        total: Samples of this outcome.
        wilson: 95 % interval of the share, as if samples were independent.
        clustered: The same by a bootstrap over puzzles, which seeds share; None with one seed or without samples.
        seeds: Least and greatest share of a seed; None likewise.
    """

    count: int
    total: int
    wilson: tuple[float, float] | None
    clustered: tuple[float, float] | None
    seeds: tuple[float, float] | None

    def text(self) -> str:
        """Return "3 of 384 [0.3-2.3 %]"."""
        if self.wilson is None:
            return "-"
        return f"{self.count} of {self.total} [{100 * self.wilson[0]:.1f}-{100 * self.wilson[1]:.1f} %]"


def settled(condition: Condition, depth: int, stream: str = "joint", outcome: str = "all") -> Settled:
    """Return how many samples converged."""
    labels, solved = _samples(condition, depth, stream)
    chosen = {"all": np.ones_like(solved), "solved": solved, "unsolved": ~solved}[outcome]
    converged = labels == LABELS.index("converged")
    count, total = int(converged[chosen].sum()), int(chosen.sum())
    if not total:
        return Settled(0, 0, None, None, None)
    puzzles = np.concatenate([np.arange(record["samples"]) for record in condition.records])
    seeds = np.concatenate([np.full(record["samples"], i) for i, record in enumerate(condition.records)])
    wilson = wilson_interval(count, total)
    if len(condition.records) == 1:
        return Settled(count, total, wilson, None, None)
    clustered = bootstrap_interval(converged[chosen].astype(float), lambda v: float(v.mean()), puzzles[chosen])
    by_seed = [float(converged[chosen & (seeds == i)].mean()) for i in np.unique(seeds[chosen])]
    return Settled(count, total, wilson, clustered, (min(by_seed), max(by_seed)))


def _samples(condition: Condition, depth: int, stream: str) -> tuple[np.ndarray, np.ndarray]:
    found = [record["depths"][depth] for record in condition.records]
    labels = np.concatenate([np.array(it["streams"][stream]["labels"], dtype=int) for it in found])
    return labels, np.concatenate([np.array(it["solved"], dtype=bool) for it in found])
