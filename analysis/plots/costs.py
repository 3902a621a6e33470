"""What a gradient costs: memory over the number of updates beside its prediction, and accuracy over memory."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from loopgrad.analysis.plots.style import (
    COLUMN,
    GREY,
    Drawn,
    Row,
    columns_of,
    lifted,
    looks,
    number,
    panels,
    plain,
    whiskers,
)

Bytes = Mapping[str, Mapping[int, float]]


def memory(measured: Bytes, predicted: Bytes) -> Drawn:
    """Draw memory over the number of updates, measured as markers and predicted as thin lines.

    Args:
        measured: Estimator -> updates -> bytes.
        predicted: The same, by formula; may lack estimators and have other numbers of updates.

    Returns:
        The figure, and a row per marker or vertex of a line. A zero is drawn at a tenth of the least positive value.

    Not recommended when:
        Measured mixes saved bytes and peaks: they differ by a constant, say which in the caption.

    Raises:
        ValueError: Nothing was measured, or a number of updates or bytes is negative.

    Example:
        >>> from loopgrad.analysis.plots import memory
        >>> drawn = memory({"bptt": {4: 2**22, 16: 2**24}}, {"bptt": {4: 2**22, 64: 2**26}})
        >>> [(row["kind"], row["updates"], row["mib"]) for row in drawn.table]
        [('measured', 4, 4.0), ('measured', 16, 16.0), ('predicted', 4, 4.0), ('predicted', 64, 64.0)]
    """
    if not any(measured.values()):
        raise ValueError("measured is empty: name -> {updates: bytes}")
    table: list[Row] = []
    for kind, given in (("measured", measured), ("predicted", predicted)):
        for name, values in given.items():
            for updates, size in sorted(values.items()):
                if updates < 1 or size < 0:
                    raise ValueError(f"{kind}[{name!r}] has {size} bytes at {updates} updates")
                row: Row = {"estimator": name, "kind": kind, "updates": int(updates), "bytes": number(size)}
                table.append({**row, "mib": number(size / 2**20)})
    shown = [row | {"mib": size} for row, size in zip(table, lifted([row["mib"] for row in table]), strict=True)]
    with panels(COLUMN, 2.8) as (figure, axes):
        axis = axes[0, 0]
        for name, (colour, line, marker, _) in looks([*measured, *predicted]).items():
            x, y = columns_of(shown, "updates", "mib", estimator=name, kind="predicted")
            axis.plot(x, y, color=colour, ls=line, lw=0.8)
            x, y = columns_of(shown, "updates", "mib", estimator=name, kind="measured")
            axis.plot(x, y, marker, color=colour, mec="#333333", mew=0.4, label=name)
        if any(predicted.values()):
            axis.plot([], [], color=GREY, lw=0.8, label="predicted")
        axis.set(xscale="log", yscale="log", xlabel="updates", ylabel="memory (MiB)")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
    return Drawn(figure, table)


class Trade(NamedTuple):
    """What one estimator takes and gives.

    Attributes:
        name: Name of the estimator.
        bytes: Memory.
        accuracy: In percent.
        low: Lower end of its interval or its least seed, in percent.
        high: Upper end or greatest seed, in percent.
    """

    name: str
    bytes: float
    accuracy: float
    low: float
    high: float


def pareto(rows: Sequence[Trade]) -> Drawn:
    """Draw accuracy over memory, and the line of those that no other beats in both.

    Args:
        rows: An estimator each.

    Returns:
        The figure, and a row per estimator; "dominated" where another takes no more, gives no less, and is better in
        one. No memory at all is drawn at a tenth of the least other.

    Not recommended when:
        The intervals overlap: the line is of the means, and its order may be chance.

    Raises:
        ValueError: rows is empty, an accuracy is not in [0, 100] between low and high, or bytes is negative.

    Example:
        >>> from loopgrad.analysis.plots import Trade, pareto
        >>> drawn = pareto([Trade("a", 2**20, 50, 40, 60), Trade("b", 2**21, 30, 20, 40)])
        >>> [row["dominated"] for row in drawn.table]
        [False, True]
    """
    if not rows:
        raise ValueError("rows is empty: there is nothing to draw")
    for row in rows:
        slack = 1e-9  # the mean of equal seeds may be off their value by rounding
        ordered = -slack <= row.low <= row.accuracy + slack <= row.high + 2 * slack <= 100 + 3 * slack
        if not ordered or not row.bytes >= 0:
            raise ValueError(f"rows: 0 <= low <= accuracy <= high <= 100 in percent, and bytes at least 0; got {row}")
    table: list[Row] = []
    for row in rows:
        no_worse = (other for other in rows if other.bytes <= row.bytes and other.accuracy >= row.accuracy)
        dominated = any(other.bytes < row.bytes or other.accuracy > row.accuracy for other in no_worse)
        table.append({"estimator": row.name, **plain(row), "mib": number(row.bytes / 2**20), "dominated": dominated})
        del table[-1]["name"]
    size, y, low, high = columns_of(table, "mib", "accuracy", "low", "high")
    x = lifted(size)
    with panels(COLUMN, 2.8) as (figure, axes):
        axis = axes[0, 0]
        best = [i for i in np.argsort(x, kind="stable") if not table[i]["dominated"]]
        axis.plot(x[best], y[best], color=GREY, lw=0.9, drawstyle="steps-post", label="not dominated", zorder=1)
        for i, look in looks(range(len(rows))).items():
            error = whiskers(y[i], low[i], high[i])
            style = {"fmt": look.marker, "color": look.colour, "mec": "#333333", "mew": 0.4, "ms": 5, "capsize": 2}
            axis.errorbar(x[i], y[i], error, label=rows[i].name, **style)
        axis.set(xscale="log", xlabel="memory (MiB)", ylabel="accuracy (%)")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    return Drawn(figure, table)
