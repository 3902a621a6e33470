"""Which residual validates which gradient: agreement with BPTT over the residual, coloured by the spectral radius."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from loopgrad.analysis.plots.style import GREY, PAGE, Drawn, columns_of, grouped, lifted, looks, panels, plain


class Point(NamedTuple):
    """One gradient beside that of BPTT.

    Attributes:
        estimator: Its name.
        residual: Relative residual of the map where the gradient was taken.
        radius: Spectral radius of the Jacobian there; None if it is not known.
        cosine: Cosine of the gradient with that of BPTT.
        relative_error: Norm of the difference over that of BPTT's gradient.
        group: What points have in common, such as a run; those of one estimator and group are joined, "" joins none.
    """

    estimator: str
    residual: float
    radius: float | None
    cosine: float
    relative_error: float
    group: str = ""


def validity(points: Sequence[Point]) -> Drawn:
    """Draw cosine and relative error of gradients against the residual that was to validate them.

    A point that is not finite is in the table and not in the figure. Zeros of logarithmic axes are drawn at a tenth of
    the least positive value.

    Args:
        points: Points of one or more estimators.

    Returns:
        The figure, and a row per point.

    Not recommended when:
        The points differ in batch size: agreement rises with the batch.

    Raises:
        ValueError: points is empty.

    Example:
        >>> from loopgrad.analysis.plots import Point, validity
        >>> drawn = validity([Point("one-step", 1e-9, 0.5, 0.9, 0.44), Point("implicit", 1e-9, None, 1.0, 1e-8)])
        >>> [axis.get_ylabel() for axis in drawn.figure.axes[:2]]
        ['gradient cosine with BPTT', 'relative error of the gradient']
    """
    names = grouped(points, "points", "estimator")
    table = [plain(point) for point in points]
    residual, radius, cosine, error = columns_of(table, "residual", "radius", "cosine", "relative_error")
    x = lifted(residual)
    with panels(PAGE, 2.8, 1, 2, sharex=True) as (figure, axes):
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable

        norm, colour_of = _norm(radius), colormaps["viridis"]
        for axis, y in zip(axes[0], (cosine, lifted(error)), strict=True):
            axis.set(xscale="log", xlabel="relative residual of the map")
            for name, (_, _, marker, _) in looks(names).items():
                mine = np.array([p.estimator == name for p in points]) & np.isfinite(x) & np.isfinite(y)
                _join(axis, points, x, y, mine)
                colours = ["#BBBBBB" if math.isnan(r) else colour_of(norm(r)) for r in radius[mine]]
                style = {"s": 22, "c": colours, "marker": marker, "edgecolors": "#333333", "linewidths": 0.5}
                axis.scatter(x[mine], y[mine], zorder=3, **style)
                axis.plot([], [], marker, color=GREY, mec="#333333", mew=0.5, label=name)
        left, right = axes[0]
        left.set_ylabel("gradient cosine with BPTT")
        right.set(yscale="log", ylabel="relative error of the gradient")
        left.axhline(1.0, color="#DDDDDD", lw=0.8, zorder=0)
        if np.isfinite(radius).any():
            bar = figure.colorbar(ScalarMappable(norm, colour_of), ax=list(axes[0]), label="spectral radius of J")
            if norm.vmin < 1 < norm.vmax:
                bar.ax.axhline(1.0, color="white", lw=1.2)
        if np.isnan(radius).any():
            left.plot([], [], "s", color="#BBBBBB", label="radius not known")
    return Drawn(figure, table)


def _norm(radius: Any) -> Any:
    from matplotlib.colors import Normalize

    known = radius[np.isfinite(radius)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    return Normalize(low - 0.05, high + 0.05) if high - low < 1e-9 else Normalize(low, high)


def _join(axis: Any, points: Sequence[Point], x: Any, y: Any, mine: Any) -> None:
    for group in dict.fromkeys(p.group for p, own in zip(points, mine, strict=True) if own and p.group):
        chosen = np.flatnonzero(mine & np.array([p.group == group for p in points]))
        chosen = chosen[np.argsort(x[chosen], kind="stable")]
        axis.plot(x[chosen], y[chosen], color="#CCCCCC", lw=0.7, zorder=1)
