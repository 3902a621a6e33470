"""What gradients are worth for what they hold: error over memory, a panel per setting, with the line of the best."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from loopgrad.analysis.plots.style import (
    GREY,
    PAGE,
    Drawn,
    Row,
    columns_of,
    grouped,
    label_log,
    lifted,
    looks,
    panels,
    plain,
)


class Price(NamedTuple):
    """One gradient: what it holds and how far it is from the exact one.

    Attributes:
        estimator: Its name.
        bytes: Memory.
        relative_error: Norm of the difference over that of the exact gradient.
        setting: What was differentiated; settings have a panel each.
    """

    estimator: str
    bytes: float
    relative_error: float
    setting: str = ""


def error_and_memory(prices: Sequence[Price], most: int = 4) -> Drawn:
    """Draw the relative error over memory, and in each panel the line of those that no other beats in both.

    Args:
        prices: One for each estimator and setting; what is not finite is in the table alone.
        most: Panels in a row.

    Returns:
        The figure, and a row per price; "dominated" where another of its setting takes no more, errs no more, and is
        better in one. Zeros are drawn at a tenth of the least positive value.

    Not recommended when:
        Errors of single draws of random estimators are compared: average squares first.

    Raises:
        ValueError: prices is empty, or most is below 1.

    Example:
        >>> from loopgrad.analysis.plots import Price, error_and_memory
        >>> drawn = error_and_memory([Price("a", 2**20, 1e-7), Price("b", 2**21, 0.3), Price("c", 2**19, 0.9)])
        >>> [row["dominated"] for row in drawn.table]
        [False, True, False]
    """
    groups = grouped(prices, "prices", "setting")
    if most < 1:
        raise ValueError(f"most={most} must be at least 1")
    table: list[Row] = []
    for price in prices:
        others = [it for it in groups[price.setting] if it.bytes <= price.bytes]
        others = [it for it in others if it.relative_error <= price.relative_error]
        beaten = any(it.bytes < price.bytes or it.relative_error < price.relative_error for it in others)
        table.append({**plain(price), "mib": price.bytes / 2**20, "dominated": beaten})
    style = looks(dict.fromkeys(price.estimator for price in prices))
    columns = min(most, len(groups))
    rows = -(-len(groups) // columns)
    with panels(PAGE, 0.9 + 2.0 * rows, rows, columns, sharey=True) as (figure, axes):
        for axis in axes.flat[len(groups) :]:
            axis.set_visible(False)
        for axis, name in zip(axes.flat, groups, strict=False):
            own = [row for row in table if row["setting"] == name and row["relative_error"] is not None]
            own.sort(key=lambda row: row["mib"])
            best = [row for row in own if not row["dominated"]]
            x, y = columns_of(best, "mib", "relative_error")
            axis.plot(x, lifted(y, 1e-17), color=GREY, lw=0.9, drawstyle="steps-post", zorder=1)
            for row in own:
                look = style[str(row["estimator"])]
                point = (row["mib"], lifted(np.array([row["relative_error"]]), 1e-17))
                axis.plot(
                    *point, look.marker, color=look.colour, mec="#333333", mew=0.4, ms=4.5, label=row["estimator"]
                )
            axis.set(xscale="log", yscale="log", title=name)
            label_log(axis.xaxis)
        for i in range(columns):
            axes[(len(groups) - 1 - i) // columns, i].set_xlabel("peak memory (MiB)")  # the lowest of its column
        for row in axes:
            row[0].set_ylabel("relative error of the gradient")
    return Drawn(figure, table)
