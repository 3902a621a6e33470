"""How residuals fall along the updates: the figure that says whether a recursion arrives, beside the rounding floor."""

from collections.abc import Sequence

import numpy as np

from loopgrad.analysis.plots.series import KINDS, relative_residuals
from loopgrad.analysis.plots.style import COLUMN, GREY, PAGE, Drawn, Row, by_outcome, columns_of, lifted, number, panels
from loopgrad.analysis.summaries import BAND, Array, quantiles
from loopgrad.analysis.trace import Trace, floor_of


def residuals(
    trace: Trace,
    correct: Array | None = None,
    streams: Sequence[str] | None = None,
    kind: str = "cycle",
    segment: int | None = None,
    horizon: int | None = None,
    floor: float | None = None,
) -> Drawn:
    """Draw the relative residual of each stream over the updates: the median of the samples and their 5-95 % band.

    A sample whose residual is nan at an update is left out there and counted as missing; one that is infinite counts
    as the largest. A zero is drawn at a tenth of the floor, or of the least positive residual if the floor is zero or
    unknown, and counted.

    Args:
        trace: Trace of `record`.
        correct: (B,) whether each sample was solved, to draw the two apart.
        streams: A panel each; default all of the trace. "joint" is all together.
        kind: "cycle", each state beside that a cycle before, or "update".
        segment: Updates in a segment; each end is marked.
        horizon: Updates in training; beyond them the model extrapolates.
        floor: Relative residual that rounding leaves; default by the dtype of the stream.

    Returns:
        The figure, and a row per stream, group and update.

    Not recommended when:
        The samples differ in kind: a median hides the few that cycle. See `heatmap`.

    Raises:
        ValueError: The trace is empty, correct has another length, or a stream, the kind, segment or horizon is wrong.

    Example:
        >>> import torch
        >>> from loopgrad.analysis import record
        >>> from loopgrad.analysis.plots import residuals
        >>> from loopgrad.gradients import Stationary
        >>> trace = record(Stationary(lambda z, x: z / 2), torch.ones(3, 4), None, num_steps=8)
        >>> residuals(trace, floor=1e-7).table[1]["median"] / residuals(trace, floor=1e-7).table[0]["median"]
        0.5
    """
    names = list(trace.streams if streams is None else streams)
    if not names:
        raise ValueError("streams is empty: name at least one")
    for name, value in (("segment", segment), ("horizon", horizon)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is a number of updates, at least 1, got {value}")
    if floor is not None and not floor >= 0:
        raise ValueError(f"floor is a relative residual, at least 0, got {floor}")
    values = {name: relative_residuals(trace, name, kind) for name in names}
    groups = by_outcome(correct, next(iter(values.values())).shape[1], "correct")
    table: list[Row] = []
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    width, legend = COLUMN if columns == 1 else PAGE, "median and 5-95 % band of the samples"
    with panels(width, 0.4 + 2.1 * rows, rows, columns, legend, sharex=True, sharey=True) as (figure, axes):
        for axis, name in zip(axes.flat, names, strict=False):
            least = floor_of(trace, name) if floor is None else floor
            for end in range(segment or trace.num_steps, trace.num_steps, segment or 1):
                axis.axvline(end, color="#DDDDDD", lw=0.5, zorder=0)
            if horizon is not None:
                axis.axvline(horizon, color="#444444", lw=1.0, zorder=1, label="training depth")
            if least:
                axis.axhline(least, color=GREY, lw=0.8, ls=(0, (1, 2)), label="rounding floor")
            for group, (chosen, look) in groups.items():
                found = _rows(values[name][:, chosen], name, group, least)
                table += found
                x, low, median, high = columns_of(found, "update", "low", "median", "high")
                axis.fill_between(x, low, high, color=look.colour, alpha=0.2, lw=0)
                axis.plot(x, median, color=look.colour, ls=look.line, label=group)
            axis.set(yscale="log", xlim=(0, 1.02 * trace.num_steps))
            axis.set_title(name if len(names) > 1 or name != "state" else "")
            axis.xaxis.get_major_locator().set_params(integer=True)
        for axis in axes.flat[len(names) :]:
            axis.set_axis_off()
        for axis in axes[-1]:
            axis.set_xlabel("updates")
        for axis in axes[:, 0]:
            axis.set_ylabel(KINDS[kind])
    return Drawn(figure, table)


def _rows(values: Array, stream: str, group: str, floor: float) -> list[Row]:
    """Return a row per update at which any sample has a residual."""
    shown = lifted(values, floor / 10 if floor else None)
    rows: list[Row] = []
    for step in np.flatnonzero(~np.isnan(values).all(axis=1)):
        here = shown[step][~np.isnan(shown[step])]
        low, median, high = quantiles(here, BAND)
        zeros = int((values[step] == 0).sum())
        counts = {"samples": here.size, "missing": shown[step].size - here.size, "zeros": zeros}
        rows.append({"stream": stream, "group": group, "update": int(step) + 1, **counts})
        rows[-1] |= {"low": low, "median": median, "high": high, "floor": number(floor)}
    return rows
