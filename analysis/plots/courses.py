"""Ways of training compared: a share of samples over steps, segments or lengths, each with its spread over seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from loopgrad.analysis.plots.style import COLUMN, Drawn, Row, grouped, label_log, looks, number, panels


class Course(NamedTuple):
    """What one seed of a condition gave along an axis.

    Attributes:
        condition: Its name; courses of one condition are its seeds.
        x: Places on the axis, such as numbers of segments.
        values: One for each.
    """

    condition: str
    x: Sequence[float]
    values: Sequence[float | None]


def conditions(courses: Sequence[Course], xlabel: str, ylabel: str, log: bool = False) -> Drawn:
    """Draw the mean of each condition, and a band from the least to the greatest seed.

    Args:
        courses: One per condition and seed.
        xlabel: What the axis is.
        ylabel: What the values are.
        log: Whether the axis is logarithmic.

    Returns:
        The figure, and a row per condition and place: mean, low, high and number of seeds.

    Not recommended when:
        Seeds were measured at different places: the mean then jumps with the seeds that are in it.

    Raises:
        ValueError: courses is empty, or one has another number of values than of places.

    Example:
        >>> from loopgrad.analysis.plots import Course, conditions
        >>> drawn = conditions([Course("a", [1, 4], [0.2, 0.5]), Course("a", [1, 4], [0.4, 0.7])], "segments", "solved")
        >>> [round(row["mean"], 12) for row in drawn.table]
        [0.3, 0.6]
    """
    groups = grouped(courses, "courses", "condition")
    table: list[Row] = []
    for name, group in groups.items():
        places: dict[float, list[float]] = {}
        for course in group:
            if len(course.x) != len(course.values):
                raise ValueError(f"{name}: {len(course.values)} values at {len(course.x)} places")
            for x, value in zip(course.x, map(number, course.values), strict=True):
                if value is not None:
                    places.setdefault(float(x), []).append(value)
        for place, known in sorted(places.items()):
            row: Row = {"condition": name, "x": place, "mean": float(np.mean(known)), "seeds": len(known)}
            table.append({**row, "low": min(known), "high": max(known)})
    with panels(COLUMN * 1.4, 2.8) as (figure, axes):
        (axis,) = axes[0]
        for name, (colour, line, marker, _) in looks(groups).items():
            own = [row for row in table if row["condition"] == name]
            x, mean, low, high = (np.array([row[key] for row in own]) for key in ("x", "mean", "low", "high"))
            axis.plot(x, mean, color=colour, ls=line, marker=marker, ms=3.5, label=name)
            axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        if table and all(row["low"] >= 0 for row in table):
            axis.set_ylim(bottom=0)  # where nothing was solved the axis would go below
        if log and table:
            axis.set_xscale("log")
            label_log(axis.xaxis)
        elif all(row["x"].is_integer() for row in table):
            axis.xaxis.get_major_locator().set_params(integer=True)
    return Drawn(figure, table)
