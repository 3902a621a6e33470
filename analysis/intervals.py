"""How sure a number is: Wilson's interval of a count, Student's of a mean, a bootstrap over puzzles of any other."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from loopgrad.analysis.summaries import Array
from loopgrad.analysis.verdicts import Verdicts


@dataclass(frozen=True)
class VerdictShare:
    """One row of a summary.

    Attributes:
        group: Value of `by` that the samples have in common, such as "True"; "all" without.
        label: Verdict.
        count: Samples of the group with this label.
        total: Samples of the group.
        low: Lower end of the 95 % interval of the share, by Wilson's score.
        high: Upper end.
    """

    group: str
    label: str
    count: int
    total: int
    low: float
    high: float

    def text(self) -> str:
        """Return "0 of 512 converged [0.0-0.7 %]"."""
        return f"{self.count} of {self.total} {self.label} [{100 * self.low:.1f}-{100 * self.high:.1f} %]"


def verdict_shares(verdicts: Verdicts, by: Array | None = None) -> list[VerdictShare]:
    """Return the share of each label with its 95 % interval, for all samples or apart by group.

    Args:
        verdicts: Verdicts of one stream.
        by: (B,) values such as whether each sample was solved.

    Not recommended when:
        Samples are not independent, such as augmentations of one puzzle: see `bootstrap_interval`.
    Reference:
        Wilson 1927, JASA 22.

    Raises:
        ValueError: by has another length than there are samples.

    Example:
        >>> from loopgrad.analysis import wilson_interval
        >>> [round(end, 3) for end in wilson_interval(64, 64)]
        [0.943, 1.0]
    """
    groups = np.full(verdicts.label.size, "all") if by is None else np.asarray(by)
    if groups.shape != verdicts.label.shape:
        raise ValueError(f"by has shape {groups.shape}, and there are {verdicts.label.size} samples")
    found = []
    for group in np.unique(groups):
        counts = verdicts.counts(groups == group)
        total = sum(counts.values())
        for label, count in counts.items():
            found.append(VerdictShare(str(group), label, count, total, *wilson_interval(count, total)))
    return found


def wilson_interval(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a share, which is sound at 0 and at all of them too."""
    from scipy.stats import binomtest  # here: loading scipy changes the filters of warnings

    interval = binomtest(count, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def student_interval(values: Sequence[float] | Array, confidence: float = 0.95) -> tuple[float, float]:
    r"""Return Student's interval of the mean of some values, such as differences paired by seed.

    .. math:: \bar v \pm t_{n - 1} \, s / \sqrt n

    Args:
        values: The values, normal and independent by assumption.
        confidence: Confidence level of the interval.

    Not recommended when:
        Values are far from normal, or hang together: see `bootstrap_interval`. Below two values it is all there is.
    Reference:
        Student 1908, Biometrika 6(1).

    Raises:
        ValueError: A value is not finite, values have more than one dimension, or confidence is not within 0 and 1.

    Example:
        >>> from loopgrad.analysis import student_interval
        >>> [round(end, 3) for end in student_interval([0.10, 0.12, 0.14])]
        [0.07, 0.17]
    """
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise ValueError(f"values must be finite numbers in one dimension, got shape {found.shape}: {values}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be above 0 and below 1, got {confidence}")
    if found.size < 2:
        return -math.inf, math.inf
    from scipy.stats import t  # here: loading scipy changes the filters of warnings

    half = float(t.ppf((1 + confidence) / 2, found.size - 1) * found.std(ddof=1)) / math.sqrt(found.size)
    mean = float(found.mean())
    return mean - half, mean + half


def bootstrap_interval(
    values: Array,
    statistic: Callable[[Array], float],
    clusters: Array | None = None,
    draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile interval of a statistic over samples, drawn anew cluster by cluster.

    Args:
        values: (B,) values, one per sample.
        statistic: Function of an array of values, such as np.median.
        clusters: (B,) names of what is independent, such as the puzzle behind each augmentation; None for each sample.
        draws: Number of draws.
        confidence: Confidence level of the interval.
        seed: Seed of the draws.

    Reference:
        Efron 1979, Annals of Statistics 7(1).

    Raises:
        ValueError: There are no values, or clusters has another length.
    """
    values = np.asarray(values)
    names = np.arange(values.size) if clusters is None else np.asarray(clusters)
    if not values.size or names.shape != values.shape:
        raise ValueError(
            f"values has shape {values.shape} and clusters {names.shape}: one of each per sample, at least one"
        )
    unique, index = np.unique(names, return_inverse=True)
    values = values[np.argsort(index, kind="stable")]  # cluster by cluster
    members = np.split(values, np.cumsum(np.bincount(index))[:-1])
    alone = len(members) == values.size
    picks = np.random.default_rng(seed).integers(unique.size, size=(draws, unique.size))
    found = [statistic(values[pick] if alone else np.concatenate([members[i] for i in pick])) for pick in picks]
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
