"""Records of one condition, over seeds: the same task, model, estimator and step of training."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from loopgrad.analysis import bootstrap_interval, wilson_interval
from loopgrad.analysis.verdicts import LABELS
from loopgrad.experiments.records import WeightsRecord

MANY_PUZZLES = 4096  # a bootstrap over more would take minutes, and Wilson's interval is narrow then


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


def check_together(records: Sequence[WeightsRecord]) -> None:
    """Check that what one part of a record, or of another record, says of samples and streams holds in the others.

    Raises:
        ValueError: Lists of samples differ in length, or records in streams or thresholds.
    """
    streams = {record["group"]: set(record["depths"][0]["streams"]) for record in reversed(records)}
    sweep = set(records[0]["depths"][0]["streams"]["joint"]["sweep"])
    for number, record in enumerate(records, 1):
        for depth in record["depths"]:
            labels = [len(stream["labels"]) for stream in depth["streams"].values()]
            if {record["samples"], len(depth["solved"]), *labels} != {record["samples"]}:
                raise ValueError(f"record {number} has not {record['samples']} samples everywhere")
            if set(depth["streams"]) != streams[record["group"]]:
                raise ValueError(f"record {number} has other streams than one of the same group")
            if (each := depth.get("positions")) is not None:
                counts = {len(texts) for texts in each.values()}
                sizes = {len(text) for texts in each.values() for text in texts}
                if each.keys() != depth["streams"].keys() or counts != {record["samples"]} or len(sizes) != 1:
                    raise ValueError(f"record {number} has not as many verdicts of positions for every sample")
            if set(depth["streams"]["joint"]["sweep"]) != sweep:
                raise ValueError(f"record {number} has verdicts at other thresholds than the first")
        for part, key in (("spectrum", "radius"), ("exponents", "mean")):
            if (found := record.get(part)) and len(found[key]) != len(found["solved"]):
                raise ValueError(f"record {number} has another number of samples in {part}.{key} and {part}.solved")


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
    return [
        dict(it) for it in record.get("gaps", []) if it["samples"] != "all" and None not in [it[key] for key in keys]
    ]


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
        clustered: The same by a bootstrap over puzzles, which seeds share; None with one seed, without samples or
            where it was not asked for.
        seeds: Least and greatest share of a seed; None with one seed or without samples.
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


def settled(
    condition: Condition, depth: int, stream: str = "joint", outcome: str = "all", by_puzzle: bool = False
) -> Settled:
    """Return how many samples converged; `by_puzzle` says whether the bootstrap is taken, which takes longest."""
    labels, solved = _samples(condition, depth, stream)
    chosen = {"all": np.ones_like(solved), "solved": solved, "unsolved": ~solved}[outcome]
    converged = labels == LABELS.index("converged")
    count, total = int(converged[chosen].sum()), int(chosen.sum())
    if not total:
        return Settled(0, 0, None, None, None)
    puzzles = np.concatenate([np.arange(record["samples"]) for record in condition.records])
    seeds = np.concatenate([np.full(record["samples"], i) for i, record in enumerate(condition.records)])
    wilson = _wilson(count, total)
    if len(condition.records) == 1:
        return Settled(count, total, wilson, None, None)
    clustered = _by_puzzle(converged[chosen], puzzles[chosen]) if by_puzzle else None
    by_seed = [float(converged[chosen & (seeds == i)].mean()) for i in np.unique(seeds[chosen])]
    return Settled(count, total, wilson, clustered, (min(by_seed), max(by_seed)))


@cache
def _wilson(count: int, total: int) -> tuple[float, float]:
    return wilson_interval(count, total)


def _by_puzzle(converged: np.ndarray, puzzles: np.ndarray) -> tuple[float, float] | None:
    """Return the interval of a share by a bootstrap over puzzles; None where there are more than MANY_PUZZLES."""
    _, index = np.unique(puzzles, return_inverse=True)
    total = np.bincount(index)
    if total.size > MANY_PUZZLES:
        return None
    count = np.bincount(index, weights=converged)
    return bootstrap_interval(np.arange(total.size), lambda drawn: float(count[drawn].sum() / total[drawn].sum()))


def _samples(condition: Condition, depth: int, stream: str) -> tuple[np.ndarray, np.ndarray]:
    found = [record["depths"][depth] for record in condition.records]
    labels = np.concatenate([np.array(it["streams"][stream]["labels"], dtype=int) for it in found])
    return labels, np.concatenate([np.array(it["solved"], dtype=bool) for it in found])
