"""Whether a claim holds: from differences paired by seed, with the interval that their spread allows."""

import math
import statistics
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loopgrad.analysis import student_interval
from loopgrad.experiments.records import ClaimRecord, TrainedRecord

HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided at this size"
FEW = "fewer than three seeds have both readings"
FLAT = "too little is solved to compare, which takes longer training or an easier task"
FULL = "nearly all is solved, and to compare takes a harder task"
SPREAD = "the spread over seeds is larger than the distance from what matters"
LEAST_SEEDS, MOST_SEEDS = 3, 10_000
CONFIDENCE = 0.95
FLOOR, CEILING = 0.02, 0.98  # shares of samples: between these a difference can show


@dataclass(frozen=True)
class Finding:
    """What became of one difference.

    Attributes:
        name: Its name.
        says: What the claim says.
        differences: Reading of the condition that is to have more, less `share` times that of the other, by seed.
        by: Least difference that matters.
        low: Lower end of the 95 % interval of the mean difference.
        high: Upper end.
        verdict: "holds" if all of the interval is above `by`, "does not hold" if none is, else "undecided ...".
        reason: Why it is undecided: FEW, FLAT, FULL or SPREAD.
        seeds: How many seeds would decide it at this spread; None where they would not, or it is decided.
    """

    name: str
    says: str
    differences: list[float]
    by: float
    low: float
    high: float
    verdict: str
    reason: str = ""
    seeds: int | None = None


def findings(record: ClaimRecord) -> list[Finding]:
    """Return what became of each difference of a claim."""
    return [_finding(name, contrast, record["trainings"]) for name, contrast in record["contrasts"].items()]


def verdict(found: Sequence[Finding]) -> str:
    """Return the verdict on a claim: it holds where all differences do, and does not where one does not."""
    kinds = [it.verdict for it in found]
    return FAILS if FAILS in kinds else HOLDS if set(kinds) == {HOLDS} else OPEN


def _finding(name: str, contrast: Mapping[str, Any], trainings: Sequence[TrainedRecord]) -> Finding:
    at, share, by = contrast.get("at", "exact"), contrast.get("share", 1.0), contrast.get("by", 0.0)
    own = {it["seed"]: it for it in trainings if it["condition"] == contrast["more"]}
    others = {it["seed"]: it for it in trainings if it["condition"] == contrast["less"]}
    if contrast["less"] is None:
        others, share = own, 0.0
    more, less = [], []
    for seed in (seed for seed in own if seed in others):
        pair = own[seed], others[seed]
        one, other = reading(pair[0], at, pair[1]), reading(pair[1], contrast.get("less_at") or at, pair[0])
        if one is not None and other is not None:
            more.append(one)
            less.append(other)
    differences = [one - share * other for one, other in zip(more, less, strict=True)]
    low, high = student_interval(differences)
    found = Finding(name, contrast["says"], differences, by, low, high, OPEN)
    if len(differences) < LEAST_SEEDS:
        return replace(found, reason=FEW)
    if is_score(at) and (reason := _nothing_to_tell(more, less, share)):
        return replace(found, reason=reason)
    if low > by:
        return replace(found, verdict=HOLDS)
    if high <= by:
        return replace(found, verdict=FAILS)
    return replace(found, reason=SPREAD, seeds=seeds_needed(differences, by))


def is_score(at: str) -> bool:
    """Return whether a reading is a share of samples that are solved."""
    return at.partition("@")[0] in ("exact", "tokens", "flops", "segments", "lengths", "halted", "match", "pass")


def _nothing_to_tell(more: Sequence[float], less: Sequence[float], share: float) -> str:
    if max(*more, *less) <= FLOOR:
        return FLAT
    return FULL if share == 1 and min(*more, *less) >= CEILING else ""


def seeds_needed(values: Sequence[float], by: float) -> int | None:
    """Return how many seeds would take the interval off `by`, were mean and spread those of these values."""
    from scipy.stats import t

    away, spread = abs(statistics.fmean(values) - by), statistics.stdev(values)

    def decides(count: int) -> bool:  # true from some count on
        return float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * spread / math.sqrt(count) < away

    counts = range(len(values) + 1, MOST_SEEDS + 1)
    found = bisect_left(counts, True, key=decides)
    return counts[found] if found < len(counts) else None


def reading(run: TrainedRecord, at: str, other: TrainedRecord | None = None) -> float | None:
    """Return a reading of a training; None where it has none.

    "flops" is the share of samples solved when as many FLOPs were spent as the cheaper of two trainings spends in all.
    """
    if at != "flops":
        return run["readings"].get(at)
    own, others = _total(run), _total(other or run)
    if own is None or others is None:
        return None
    return at_step(run, run["train_steps"] * min(own, others) / own)


def at_step(run: TrainedRecord, step: float) -> float:
    """Return the share of samples solved at a step, linear between evaluations, from 0 at the first step."""
    return float(np.interp(step, [0, *run["curve"]["step"]], [0.0, *run["curve"]["exact_accuracy"]]))


def _total(run: TrainedRecord) -> float | None:
    return run["train_steps"] * run["flops"] if run["flops"] else None
