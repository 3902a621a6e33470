"""What medians hide: every sample's residual at every update, and every token's number on its grid."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from loopgrad.analysis.plots.series import KINDS, relative_residuals
from loopgrad.analysis.plots.style import COLUMN, PAGE, Array, Drawn, lifted, number, panels
from loopgrad.analysis.trajectory import Trace
from loopgrad.analysis.verdicts import LABELS, Verdicts


def heatmap(trace: Trace, verdicts: Verdicts, kind: str = "cycle") -> Drawn:
    """Draw the logarithm of the relative residual of every sample at every update, samples sorted by verdict.

    The stream is that of the verdicts. Within a verdict, the smallest last residual is on top. A residual of zero is
    drawn at a tenth of the floor of the verdicts, as is what is below that; where there is none, the map is white. The
    table has what is below as it is.

    Args:
        trace: Trace of `record`.
        verdicts: Verdicts of one stream of it, or of "joint".
        kind: "cycle" or "update", as of `residuals`.

    Returns:
        The figure, and a row per cell that is drawn.

    Not recommended when:
        There are thousands of samples: a row is thinner than a dot.

    Raises:
        ValueError: The trace is empty, or the verdicts are of another stream or number of samples.

    Example:
        >>> import torch
        >>> from loopgrad.analysis import classify, record
        >>> from loopgrad.analysis.plots import heatmap
        >>> from loopgrad.gradients import Stationary
        >>> trace = record(Stationary(lambda z, x: z / 2), torch.ones(3, 4), None, num_steps=32, lags=2)
        >>> len(heatmap(trace, classify(trace)["joint"]).table)
        96
    """
    values = relative_residuals(trace, verdicts.stream, kind)  # (T, B)
    if verdicts.label.shape != values.shape[1:]:
        raise ValueError(f"verdicts are of {verdicts.label.size} samples, and the trace has {values.shape[1]}")
    kept = np.flatnonzero(~np.isnan(values).all(axis=1))
    kept = kept if kept.size else np.arange(len(values))
    shown = np.log10(lifted(values, verdicts.floor / 10 if verdicts.floor else None))
    last = shown[kept[-1]]
    rank = np.array([LABELS.index(label) for label in verdicts.label])
    order = np.lexsort((np.where(np.isnan(last), np.inf, last), rank))
    picture = np.where(np.isfinite(shown), shown, np.nan)[kept][:, order].T  # (B, updates)
    # a cell reaches back to the update that moved the stream before
    edges = np.concatenate([[2 * kept[0] - kept[1] if kept.size > 1 else kept[0] - 1], kept]) + 1.5
    with panels(PAGE, 2.0 + min(4.0, 0.02 * order.size)) as (figure, axes):
        axis = axes[0, 0]
        # what is below the floor is all one: zeros are drawn there too
        picture = np.maximum(picture, np.log10(verdicts.floor / 10) if verdicts.floor else -np.inf)
        mesh = axis.pcolormesh(edges, np.arange(order.size + 1), picture, cmap="cividis", rasterized=True)
        figure.colorbar(mesh, ax=axis, label=f"log10 {KINDS[kind]}")
        _name_groups(axis, verdicts.label, 0.13 / (figure.get_figheight() - 0.8))
        axis.set(xlabel="updates", yticks=[], ylim=(order.size, 0), title=f"{verdicts.stream}, {order.size} samples")
        axis.xaxis.get_major_locator().set_params(integer=True)
    table = []
    for row, sample in enumerate(order):
        place = {"row": row, "sample": int(sample), "label": str(verdicts.label[sample])}
        for step in kept[~np.isnan(values[kept, sample])]:
            table.append({**place, "update": int(step) + 1, "log10_residual": number(shown[step, sample])})
    return Drawn(figure, table)


def token_map(values: Array, shape: tuple[int, int], symbols: Sequence[str] | None = None) -> Drawn:
    """Draw one number per token where the token stands on its grid.

    Args:
        values: (S,) numbers, such as the residual of each token.
        shape: Rows and columns, S in all, row by row.
        symbols: S strings to print in the cells, such as digits.

    Returns:
        The figure, and a row per token.

    Not recommended when:
        The tokens are not a grid, or some are not cells of it, such as the embedding of a puzzle: leave these out.

    Raises:
        ValueError: values is empty or does not fit the shape, or symbols does not fit the values.

    Example:
        >>> import numpy as np
        >>> from loopgrad.analysis.plots import token_map
        >>> token_map(np.arange(4.0), (2, 2), "1.3.").table[2]
        {'row': 1, 'column': 0, 'value': 2.0, 'symbol': '3'}
    """
    values = np.asarray(values, dtype=float).ravel()
    rows, columns = shape
    if not values.size or values.size != rows * columns:
        raise ValueError(f"values are {values.size} numbers, and shape {shape} has {rows * columns} cells")
    if symbols is not None and len(symbols) != values.size:
        raise ValueError(f"symbols are {len(symbols)}, and values are {values.size}")
    grid = np.where(np.isfinite(values), values, np.nan).reshape(rows, columns)
    with panels(COLUMN, 0.5 + min(4.5, 2.6 * rows / columns)) as (figure, axes):
        axis = axes[0, 0]
        mesh = axis.pcolormesh(grid, cmap="cividis", edgecolors="white", linewidth=0.4)
        figure.colorbar(mesh, ax=axis, label="value per token")
        for i, symbol in enumerate(symbols or ()):
            row, column = divmod(i, columns)
            dark = np.isfinite(grid[row, column]) and mesh.norm(grid[row, column]) < 0.55
            colour = "white" if dark else "black"
            axis.text(column + 0.5, row + 0.5, symbol, ha="center", va="center", color=colour, fontsize=7)
        axis.set(aspect="equal", ylim=(rows, 0), xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    table = [{"row": i // columns, "column": i % columns, "value": number(v)} for i, v in enumerate(values)]
    if symbols is not None:
        table = [{**row, "symbol": str(symbol)} for row, symbol in zip(table, symbols, strict=True)]
    return Drawn(figure, table)


def _name_groups(axis: Any, labels: Array, line: float) -> None:
    """Part the verdicts by lines and write their names on the left; a line of text is that part of the height."""
    sizes = {label: int((labels == label).sum()) for label in LABELS if label in labels}
    ends = np.cumsum(list(sizes.values()))
    middles = ends - np.array(list(sizes.values())) / 2
    arrow = {"arrowstyle": "-", "lw": 0.5, "shrinkA": 1, "shrinkB": 0, "relpos": (1.0, 0.5)}
    beside = ("axes fraction", "data")
    for end in ends[:-1]:
        axis.axhline(end, color="white", lw=1.2)
        axis.axhline(end, color="black", lw=0.5)
    for (label, count), middle, place in zip(sizes.items(), middles, _apart(middles, ends[-1], line), strict=True):
        style = {"annotation_clip": False, "ha": "right", "va": "center", "fontsize": 7, "arrowprops": arrow}
        axis.annotate(f"{label} n={count}", (0, middle), (-0.04, place), beside, beside, **style)


def _apart(middles: Array, whole: float, line: float) -> Array:
    """Return places a line of text apart, as near to the middles as going down and then up again finds them."""
    places, least = np.array(middles, dtype=float), line * whole
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + least)
    places[-1] = min(places[-1], whole)
    for i in range(len(places) - 2, -1, -1):
        places[i] = min(places[i], places[i + 1] - least)
    return places
