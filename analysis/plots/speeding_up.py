"""How much shorter the chain of operations that wait for one another becomes, against the Lyapunov exponent."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from loopgrad.analysis.plots.style import COLUMN, GREY, Drawn, columns_of, grouped, looks, panels, plain


class SpeedUp(NamedTuple):
    """One way to run a recursion, and the chain of operations that it is.

    Attributes:
        method: Its name.
        exponent: Largest Lyapunov exponent of the recursion, in nats per update.
        updates: Updates that a loop runs one after the other.
        depth: Operations that wait for one another in place of them.
        met: Whether it came to the states of the loop.
    """

    method: str
    exponent: float
    updates: int
    depth: int
    met: bool


def speed_ups(points: Sequence[SpeedUp]) -> Drawn:
    """Draw updates over depth against the exponent, a line per method; what has not come to the states is crossed out.

    Below the thin line a loop waits less.

    Args:
        points: Points of one or more methods, in the order in which these are to be named.

    Returns:
        The figure, and a row per point with its `speed_up`.

    Not recommended when:
        Times are meant: what an operation takes depends on the device, and on how much of it they fill.

    Raises:
        ValueError: points is empty, or a depth is below 1.

    Example:
        >>> from loopgrad.analysis.plots import SpeedUp, speed_ups
        >>> drawn = speed_ups([SpeedUp("full", -0.5, 1024, 64, True), SpeedUp("full", 0.1, 1024, 4096, False)])
        >>> [row["speed_up"] for row in drawn.table]
        [16.0, 0.25]
    """
    names = grouped(points, "points", "method")
    for point in points:
        if point.depth < 1:
            raise ValueError(f"points: a depth must be at least 1, got {point}")
    table = [{**plain(point), "speed_up": point.updates / point.depth} for point in points]
    with panels(COLUMN, 2.8) as (figure, axes):
        axis = axes[0, 0]
        axis.axhline(1.0, color=GREY, lw=0.8, zorder=0, label="loop")
        for name, (colour, line, marker, _) in looks(names).items():
            x, y = columns_of(table, "exponent", "speed_up", method=name)
            order = np.argsort(x, kind="stable")
            axis.plot(x[order], y[order], color=colour, ls=line, marker=marker, ms=4, lw=1.0, label=name)
        x, y = columns_of(table, "exponent", "speed_up", met=0)
        if x.size:
            axis.plot(x, y, "x", color="black", ms=7, mew=0.9, zorder=5, label="steps ran out")
        axis.set(yscale="log", xlabel="largest Lyapunov exponent", ylabel="updates / operations in a chain")
    return Drawn(figure, table)
