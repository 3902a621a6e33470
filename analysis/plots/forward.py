"""How near estimated gradients come to the exact one: cosine over tangents, parameters, updates or samples."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from loopgrad.analysis.plots.style import GREY, PAGE, Drawn, columns_of, grouped, looks, panels, plain

MOST_TICKS = 5


class Estimate(NamedTuple):
    """One estimated gradient beside the exact one.

    Attributes:
        gradient: Name of the estimator.
        quantity: What is varied, the label of a panel.
        value: Value of that quantity, above 0.
        cosine: With the exact gradient, such as the mean over draws.
        law: What theory says of the cosine; None or nan if nothing.
    """

    gradient: str
    quantity: str
    value: float
    cosine: float
    law: float | None = None


def forward_cosines(points: Sequence[Estimate]) -> Drawn:
    """Draw the cosine of estimated gradients with the exact one, a panel for each quantity that is varied.

    Laws are dashed lines, in the order of values and one per gradient; laws that agree lie upon each other. Exact
    gradients have a cosine of 1, a thin line.

    Args:
        points: Points of one or more gradients and quantities, in the order in which they are to be named.

    Returns:
        The figure, and a row per point.

    Not recommended when:
        Cosines differ by powers of ten: the axis is linear, and small ones lie upon each other.

    Raises:
        ValueError: points is empty, or a value is not above 0.

    Example:
        >>> from loopgrad.analysis.plots import Estimate, forward_cosines
        >>> points = [Estimate("weights", quantity, 8, 0.1, 0.09) for quantity in ("tangents", "updates")]
        >>> drawn = forward_cosines(points)
        >>> [axis.get_xlabel() for axis in drawn.figure.axes], drawn.table[0]["law"]
        (['tangents', 'updates'], 0.09)
    """
    names, quantities = (grouped(points, "points", field) for field in ("gradient", "quantity"))
    for point in points:
        if not point.value > 0:
            raise ValueError(f"points: a value must be above 0 on a logarithmic axis, got {point}")
    table = [plain(point) for point in points]
    with panels(PAGE, 2.8, 1, len(quantities), sharey=True) as (figure, axes):
        laws = []
        for axis, quantity in zip(axes[0], quantities, strict=True):
            axis.axhline(1.0, color=GREY, lw=0.8, zorder=0, label="exact")
            for name, (colour, line, marker, _) in looks(names).items():
                mine = columns_of(table, "value", "cosine", "law", gradient=name, quantity=quantity)
                x, y, law = mine[:, np.argsort(mine[0], kind="stable")]
                # open marks: those that lie upon each other stay visible
                style = {"marker": marker, "ms": 4.5, "mfc": "none", "mew": 0.9, "lw": 1.0}
                axis.plot(x, y, color=colour, ls=line, label=name, **style)
                if np.isfinite(law).any():
                    laws.append((axis, x, law))
            axis.set(xscale="log", xlabel=quantity)
            values = sorted({row["value"] for row in table if row["quantity"] == quantity})
            axis.set_xticks(values[:: -(-len(values) // MOST_TICKS)])
            axis.set_xticks([], minor=True)
            axis.xaxis.set_major_formatter("{x:g}")
        for axis, x, law in laws:  # last, and so last in the legend
            axis.plot(x, law, color="black", ls=(0, (5, 2)), lw=0.9, label="law")
        axes[0, 0].set(ylabel="cosine with the exact gradient", ylim=(min(0.0, axes[0, 0].get_ylim()[0]), 1.04))
    return Drawn(figure, table)
