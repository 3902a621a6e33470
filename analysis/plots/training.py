"""How residual and spectral radius change while a model is trained, per estimator."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from loopgrad.analysis.plots.style import COLUMN, GREY, Drawn, Row, columns_of, grouped, lifted, looks, number, panels


class Progress(NamedTuple):
    """What one seed measured at one step.

    Attributes:
        estimator: Its name.
        step: Optimiser steps so far.
        residual: Relative residual, such as the median over samples.
        radius: Spectral radius; None if it was not measured.
    """

    estimator: str
    step: int
    residual: float | None
    radius: float | None = None


def over_training(rows: Sequence[Progress]) -> Drawn:
    """Draw relative residual and spectral radius over optimiser steps: mean, least and greatest of the seeds.

    Args:
        rows: One per estimator, step and seed; what is None or not finite is left out.

    Returns:
        The figure, and a row per estimator, step and quantity. The lower panel is left out if no radius is known. A
        zero of the residual is drawn at a tenth of the least positive value.

    Not recommended when:
        Seeds were measured at different steps: the mean then jumps with the seeds that are in it.

    Raises:
        ValueError: rows is empty.

    Example:
        >>> from loopgrad.analysis.plots import Progress, over_training
        >>> drawn = over_training([Progress("bptt", 10, 0.2, None), Progress("bptt", 10, 0.4, None)])
        >>> (row,) = drawn.table
        >>> round(row["mean"], 12), row["low"], row["high"], row["seeds"]
        (0.3, 0.2, 0.4, 2)
    """
    groups = grouped(rows, "rows", "estimator")
    table = [*_rows(groups, "residual"), *_rows(groups, "radius")]
    quantities = ["residual", "radius"] if any(row["quantity"] == "radius" for row in table) else ["residual"]
    with panels(COLUMN, 0.6 + 1.7 * len(quantities), len(quantities), 1, sharex=True) as (figure, axes):
        for axis, quantity in zip(axes[:, 0], quantities, strict=True):
            x, *marks = columns_of(table, "step", "low", "mean", "high", quantity=quantity)
            marks = lifted(marks) if quantity == "residual" else np.array(marks)
            owner = np.array([row["estimator"] for row in table if row["quantity"] == quantity])
            for name, (colour, line, marker, _) in looks(groups).items():
                low, mean, high = marks[:, owner == name]
                axis.fill_between(x[owner == name], low, high, color=colour, alpha=0.15, lw=0)
                axis.plot(x[owner == name], mean, color=colour, ls=line, marker=marker, ms=3, label=name)
        axes[0, 0].set(yscale="log", ylabel="relative residual")
        if len(quantities) == 2:
            axes[1, 0].set_ylabel("spectral radius of J")
            axes[1, 0].axhline(1.0, color=GREY, lw=0.8, ls=(0, (1, 2)))
        axes[-1, 0].set_xlabel("optimiser steps")
    return Drawn(figure, table)


def _rows(groups: dict[str, list[Progress]], quantity: str) -> list[Row]:
    table: list[Row] = []
    for name, rows in groups.items():
        for step in sorted({int(row.step) for row in rows}):
            given = [number(getattr(row, quantity)) for row in rows if int(row.step) == step]
            if values := [value for value in given if value is not None]:
                table.append({"estimator": name, "step": step, "quantity": quantity, "seeds": len(values)})
                table[-1] |= {"mean": float(np.mean(values)), "low": min(values), "high": max(values)}
    return table
