"""Many numbers in few words: quantiles over samples, and text of at most LINES lines that fits a screen."""

from collections.abc import Sequence

import numpy as np

Array = np.ndarray
LINES, WIDTH, NAME = 12, 120, 24
BAND = (0.05, 0.5, 0.95)


def quantiles(values: Array, levels: Sequence[float]) -> list[float | None]:
    """Return quantiles, ready for JSON.

    A value that is not finite counts as the largest. None stands where the quantile is not finite, or where there are
    no values.
    """
    if not values.size:
        return [None] * len(levels)
    if not np.isfinite(values).all():  # numpy would interpolate between infinities
        values = np.where(np.isnan(values), np.inf, values)
    with np.errstate(invalid="ignore"):
        found = np.quantile(values, levels)
    return [float(value) if np.isfinite(value) else None for value in found]


def band(found: Sequence[float | None]) -> str:
    """Return quantiles at the levels of BAND as "median [low, high]", or the one number if they are alike."""
    low, median, high = ("inf" if value is None else f"{value:.2g}" for value in found)
    return median if low == high else f"{median} [{low}, {high}]"


def band_of(values: Array) -> str:
    """Return the band of the values that are not nan, "-" if there are none."""
    known = values[~np.isnan(values)]
    return band(quantiles(known, BAND)) if known.size else "-"


def screen(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a title and a table, shortened to what fits."""
    room = LINES - 1 - len(title.splitlines())
    kept = rows if len(rows) <= room else rows[: room - 1]
    cells = [[shortened(first, NAME), *rest] for first, *rest in [header, *kept]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in cells] if rows else []
    lines += [f"  and {len(rows) - len(kept)} more"] if len(kept) < len(rows) else []
    return "\n".join(shortened(line, WIDTH) for line in [*title.splitlines(), *lines])


def shortened(text: str, width: int = WIDTH) -> str:
    """Return text of at most that many characters, cut off by dots."""
    return text if len(text) <= width else f"{text[: width - 3]}..."
