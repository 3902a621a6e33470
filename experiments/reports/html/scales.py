"""Axes of charts: where a value lies, and which ticks are told."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

GREATEST = 1e300  # values beyond are not drawn: differences of them are no numbers


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`, by powers of ten if `log`; `ticks` are those that are told."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Return where a value lies, 0 at `low` and 1 at `high`; what a logarithmic axis lacks is at its lower end."""
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        if value <= 0:
            return 0.0
        low, high = math.log10(self.low), math.log10(self.high)
        return min(1.0, max(0.0, (math.log10(value) - low) / (high - low)))

    @classmethod
    def of(cls, values: Sequence[float], log: bool, most: int = 6) -> "Scale":
        """Return the axis of some values, at least one, with at most about `most` ticks."""
        above = [value for value in values if value > 0]
        return _log(above, most) if log and above else _linear(values, most)


def _linear(values: Sequence[float], most: int) -> Scale:
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a number that floats can tell from its neighbours
        pad = 0.5 * abs(low) or 0.5
        low, high = low - pad, high + pad
    step = _step((high - low) / max(1, most - 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [i * step for i in range(first, last + 1)]
    return Scale(ticks[0], ticks[-1], False, tuple(ticks))


def _step(least: float) -> float:
    """Return the least of 1, 2 and 5 times a power of ten that is no smaller."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _log(values: Sequence[float], most: int) -> Scale:
    first, last = math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)
    if first == last:
        first, last = first - 1, last + 1
    first = max(first, -300)
    last = max(last, first + 1)
    every = math.ceil((last - first) / max(1, most - 1))
    ticks = [10.0**i for i in range(first, last + 1, every)]
    if last - first == 1:
        ticks = [factor * 10.0**first for factor in (1, 2, 5, 10)]
    return Scale(10.0**first, 10.0**last, True, tuple(ticks))


def told(value: float) -> str:
    """Return a number as it stands at a mark: four digits, large and small ones by powers of ten."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    power = f"10{str(int(exponent)).translate(_RAISED)}"
    return power if mantissa == "1" else f"{mantissa}×{power}"


def ticks(scale: Scale) -> list[tuple[float, str]]:
    """Return the ticks of an axis and how they are told: all as powers of ten where one would be."""
    powers = scale.log and not all(1e-2 <= tick < 1e4 for tick in scale.ticks)
    exponents = [round(math.log10(tick)) if powers else 0 for tick in scale.ticks]
    told_powers = powers and all(math.isclose(10.0**e, t) for e, t in zip(exponents, scale.ticks, strict=True))
    if told_powers:
        return [(tick, f"10{str(e).translate(_RAISED)}") for e, tick in zip(exponents, scale.ticks, strict=True)]
    return [(tick, told(tick)) for tick in scale.ticks]


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
