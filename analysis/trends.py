"""Whether a series of residuals falls or grows, by least squares of its logarithm, and whether states are met again."""

from dataclasses import dataclass

import numpy as np

from loopgrad.analysis.summaries import Array
from loopgrad.analysis.verdicts import Thresholds

_STRAIGHT = 0.998  # net displacement over path length: below it an arc of a fifth of a radian or more


@dataclass(frozen=True)
class Trend:
    """Least squares of log residual over cycles, and over their logarithm."""

    slope: float
    slope_error: float
    fit: float
    exponent: float
    geometric: bool  # whether the former fits as well
    change: float  # of log residual over the tail

    @property
    def rate(self) -> float:
        """The factor per cycle."""
        return float(np.exp(self.slope))

    @property
    def adds_up(self) -> bool:
        """Whether the steps of a falling residual sum to something finite."""
        return self.geometric or self.exponent < -1.05

    def goes(self, sign: int, limits: Thresholds) -> bool:
        """Whether the residual rises (+1) or falls (-1): by more than 1 %, and significantly or along a line."""
        slope, errors = sign * self.slope, limits.errors * self.slope_error
        return slope > errors and sign * self.change > 0.01 and (self.fit > limits.fit or slope > 2 * errors)

    @classmethod
    def of(cls, times: Array, tail: Array) -> "Trend":
        """Fit residuals at the given cycles, zeros left out."""
        kept = tail > 0
        if kept.sum() < 4:
            return cls(-np.inf, 0.0, 0.0, np.nan, True, -np.inf)
        logs = np.log(tail[kept])
        slope, error, fit = _line(times[kept].astype(float), logs)
        exponent, _, algebraic = _line(np.log(times[kept]), logs)
        return cls(slope, error, fit, exponent, fit >= algebraic - 0.005, slope * (times[-1] - times[0]))


def _line(x: Array, y: Array) -> tuple[float, float, float]:
    """Return slope, its standard error and R^2 of a least-squares line."""
    x, y = x - x.mean(), y - y.mean()
    spread, total = (x @ x), (y @ y)
    slope = (x @ y) / spread
    rest = y - slope * x
    left = float(rest @ rest)
    error = (left / max(1, x.size - 2) / spread) ** 0.5
    return float(slope), float(error), float(1 - left / total) if total > 0 else 0.0


def straight(norm: Array) -> bool:
    """Whether a norm changes along a line, by more than 2 %."""
    slope, _, fit = _line(np.arange(norm.size, dtype=float), norm)
    return fit > 0.8 and abs(slope) * norm.size > 0.02 * norm.mean()


def outward(trend: Trend, norm: Array, step: Array, turning: Array, straightness: float) -> bool:
    """Whether the steps of a tail that grow take the state out of where it has been; else it only moves faster there.

    Motion that turns is judged by the radius of its turns, which does not depend on where their centre lies; straight
    motion by the norm, which must reach new heights, and either it or its own steps must keep pace with the residual.

    Args:
        trend: Of the residual.
        norm: Of the states, one more than steps.
        step: Sizes of the steps.
        turning: Products of each step with the one before.
        straightness: Net displacement over path length.
    """
    least = trend.change / 4  # from half to half a geometric growth changes by a half of it
    with np.errstate(divide="ignore", invalid="ignore"):
        if straightness < _STRAIGHT:
            sizes = step[1:] * step[:-1]
            moved = sizes > 0
            angle = np.arccos(np.clip(turning[1:][moved] / sizes[moved], -1, 1))
            return _pace(step[1:][moved] / np.sin(angle / 2)) >= least
        middle = norm.size // 2
        rises = norm[middle:].max() > norm[:middle].max()
        return bool(rises) and max(_pace(norm), _pace(np.abs(np.diff(norm)))) >= least


def _pace(series: Array) -> float:
    """Return the change of log from the first half of a series to the second, by their medians."""
    middle = series.size // 2
    return float(np.log(np.median(series[middle:]) / np.median(series[:middle])))


def met_again(lagged: Array, half: int, scale: float, limits: Thresholds, floor: float) -> int:
    """Return the least lag, from 2 on, at which states are met again over the last half of the tail; 0 for none."""
    start = half + (lagged.shape[1] - half) // 2
    typical = float(np.sqrt(np.mean(lagged[0, start:] ** 2)))
    bound = max(limits.recurrence * typical, 2 * floor * scale)
    for lag in range(2, min(lagged.shape[0], start + 1) + 1):
        if np.quantile(lagged[lag - 1, start:], 0.95) <= bound:
            return lag
    return 0
