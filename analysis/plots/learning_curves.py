"""What training bought: loss against the FLOPs spent so far, and the loss at the end against memory."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from loopgrad.analysis.plots.style import PAGE, Drawn, Row, grouped, label_log, looks, number, panels, whiskers


class Learning(NamedTuple):
    """Trainings of one estimator in one case, over some seeds.

    Attributes:
        name: Name of the estimator.
        case: What was learnt: trainings of one case stand in one column.
        bytes: Memory of an update of the weights.
        flops: Spent when each loss was taken, in order.
        losses: For each seed, as many as `flops`.
    """

    name: str
    case: str
    bytes: float
    flops: Sequence[float]
    losses: Sequence[Sequence[float]]


def learning(curves: Sequence[Learning]) -> Drawn:
    """Draw mean losses with their range over the seeds; both axes are logarithmic.

    Losses that are not finite, and those at 0 FLOPs, are in the table and not in the figure.

    Args:
        curves: One per estimator and case.

    Returns:
        The figure, and a row per loss of each seed.

    Not recommended when:
        Estimators had different numbers of updates: the last losses then differ in more than memory.

    Raises:
        ValueError: curves is empty, or one has another number of losses than of FLOPs.

    Example:
        >>> from loopgrad.analysis.plots import Learning, learning
        >>> drawn = learning([Learning("bptt", "sum", 2**20, [0, 1e9, 2e9], [[1.0, 0.5, 0.1], [1.0, 0.4, 0.2]])])
        >>> len(drawn.table), [axis.get_xlabel() for axis in drawn.figure.axes]
        (6, ['FLOPs', 'peak memory (MiB)'])
    """
    names, cases = (grouped(curves, "curves", field) for field in ("name", "case"))
    table: list[Row] = []
    for curve in curves:
        for i, losses in enumerate(curve.losses):
            if len(losses) != len(curve.flops):
                raise ValueError(f"{curve.name}, {curve.case}: {len(losses)} losses at {len(curve.flops)} FLOPs")
            place = {"estimator": curve.name, "case": curve.case, "run": i, "bytes": number(curve.bytes)}
            pairs = zip(curve.flops, losses, strict=True)
            table += [{**place, "flops": number(flops), "loss": number(loss)} for flops, loss in pairs]
    with panels(PAGE, 4.2, 2, len(cases), sharey="col") as (figure, axes):
        for curve in curves:
            colour, line, marker, _ = looks(names)[curve.name]
            above, below = axes[:, list(cases).index(curve.case)]
            losses = np.array(curve.losses, dtype=float)
            flops = np.array(curve.flops, dtype=float)
            shown = (flops > 0) & np.isfinite(losses).all(0)
            x, mean, least, most = flops[shown], *(f(losses[:, shown], axis=0) for f in (np.mean, np.min, np.max))
            above.plot(x, mean, marker=marker, ms=2.5, color=colour, ls=line, label=curve.name)
            above.fill_between(x, least, most, color=colour, alpha=0.15, lw=0)
            if shown.any() and shown[-1]:
                error = whiskers(mean[-1], least[-1], most[-1])
                style = {"fmt": marker, "color": colour, "mec": "#333333", "mew": 0.4, "capsize": 2}
                below.errorbar(curve.bytes / 2**20, mean[-1], error, **style)
        for case, (above, below) in zip(cases, axes.T, strict=True):
            above.set(xscale="log", yscale="log", xlabel="FLOPs", title=case)
            below.set(xscale="log", yscale="log", xlabel="peak memory (MiB)")
            for axis in (below.xaxis, above.yaxis, below.yaxis):
                label_log(axis)
        axes[0, 0].set_ylabel("held-out loss")
        axes[1, 0].set_ylabel("held-out loss at the end")
    return Drawn(figure, table)
