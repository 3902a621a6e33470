"""What all figures share: the look of print, colours that differ in grey too, and files that come out byte by byte.

The palette is that of M. Okabe and K. Ito, "Color universal design", 2008.
"""

import io
import json
import math
import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from loopgrad.analysis.files import replace_bytes
from loopgrad.analysis.summaries import Array, shortened
from loopgrad.analysis.verdicts import LABELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]

COLUMN, PAGE = 3.4, 7.0  # widths in inches
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
STYLES = ("-", (0, (5, 2)), (0, (1, 1)), (0, (3, 1, 1, 1)))
MARKERS = "osD^vP*X"
GREY = "#999999"

LOOK: dict[Any, Any] = {
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 8),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize", "legend.title_fontsize"), 7),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "hatch.linewidth": 0.4,
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "svg.fonttype": "none",  # text stays text
    "pdf.fonttype": 42,  # TrueType: some journals refuse Type 3
    "svg.hashsalt": "loopgrad",  # the same figure gives the same bytes
}


class Drawn(NamedTuple):
    """A figure and the numbers behind every mark of it.

    Attributes:
        figure: A matplotlib figure; it belongs to no window and needs no closing.
        table: Rows ready for JSON: floats, ints, bools, strings, and None for what is not finite.
    """

    figure: "Figure"
    table: list[Row]

    def __repr__(self) -> str:
        """Say how large the figure and its table are."""
        width, height = self.figure.get_size_inches()
        columns = ", ".join(self.table[0]) if self.table else "none"
        return shortened(f"Drawn: {width:.3g} x {height:.3g} inches, a table of {len(self.table)} rows of {columns}")


class Look(NamedTuple):
    """How one of several things compared, such as estimators, outcomes or verdicts, is drawn in all figures."""

    colour: str
    line: Any
    marker: str
    hatch: str = ""


def looks(names: Iterable[Any]) -> dict[Any, Look]:
    """Return how each of several things compared is drawn, by their order; a name may come again."""
    found = {}
    for i, name in enumerate(dict.fromkeys(names)):
        shift = i + i // len(COLOURS)  # a colour that comes again has another line and another marker
        found[name] = Look(COLOURS[i % len(COLOURS)], STYLES[shift % len(STYLES)], MARKERS[shift % len(MARKERS)])
    return found


SOLVED, UNSOLVED = Look(COLOURS[0], STYLES[0], "o"), Look(COLOURS[3], STYLES[1], "^", "////")


def by_outcome(solved: Array | None, batch: int, argument: str) -> dict[str, tuple[Array, Look]]:
    """Return the solved and the unsolved samples by a name with their number, those that there are; else all.

    Of each a mask (B,), and how they are drawn. ValueError names the argument if it has not the samples' number.
    """
    if solved is None:
        return {f"all n={batch}": (np.ones(batch, dtype=bool), SOLVED)}
    solved = np.asarray(solved, dtype=bool)
    if solved.shape != (batch,):
        raise ValueError(f"{argument} has shape {solved.shape}, and there are {batch} samples")
    both = {f"solved n={solved.sum()}": (solved, SOLVED), f"unsolved n={(~solved).sum()}": (~solved, UNSOLVED)}
    return {name: group for name, group in both.items() if group[0].any()}


_VERDICT_COLOURS = [*(COLOURS[i] for i in (2, 5, 1, 4, 0, 6, 3, 7)), GREY, "#DDDDDD"]
_VERDICT_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "||||", "++++", "", "----", "")


def look(label: str) -> Look:
    """Return how a verdict is drawn; raise ValueError if it is none of LABELS."""
    if label not in LABELS:
        raise ValueError(f"{label!r} is not a verdict; they are {', '.join(LABELS)}")
    i = LABELS.index(label)
    return looks(LABELS)[label]._replace(colour=_VERDICT_COLOURS[i], hatch=_VERDICT_HATCHES[i])


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in the look of this package, whatever the user's settings, and leave these as they were.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("figures are drawn by matplotlib: pip install 'loopgrad[plots]'") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(LOOK)
        yield


@contextmanager
def panels(
    width: float, height: float, rows: int = 1, columns: int = 1, legend: str | None = None, **options: Any
) -> Iterator[tuple["Figure", Any]]:
    """Yield a figure to draw on and its axes, an array (rows, columns), which get one legend below at the end.

    Options are those of `Figure.subplots`; `legend` is the legend's title.
    """
    with drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)
        _legend_below(figure, legend)


def label_log(axis: Any) -> None:
    """Label a logarithmic axis at powers of ten; one of less than two decades at 2 and 5 times these as well."""
    from matplotlib.ticker import LogLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def _legend_below(figure: "Figure", title: str | None) -> None:
    """Put one legend of all panels below them, each label once, in as many columns as fit."""
    found: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if not found:
        return
    fit = int(figure.get_figwidth() / (0.5 + 0.055 * max(map(len, found))))
    rows = math.ceil(len(found) / max(1, fit))
    columns = math.ceil(len(found) / rows)
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns, title=title)


def number(value: Any) -> float | None:
    """Return a float for JSON, None where it is missing or not finite."""
    return float(value) if value is not None and math.isfinite(value) else None


def plain(row: Any) -> Row:
    """Return the fields of a named tuple as a row of a table: strings as they are, all else by `number`."""
    return {key: value if isinstance(value, str) else number(value) for key, value in row._asdict().items()}


def grouped(rows: Sequence[Any], argument: str, field: str) -> dict[str, list[Any]]:
    """Return the rows by the value of a field, in order of appearance; raise ValueError if there are none."""
    if not rows:
        raise ValueError(f"{argument} is empty: there is nothing to draw")
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(getattr(row, field), []).append(row)
    return found


def columns_of(table: Sequence[Row], *keys: str, **where: Any) -> Array:
    """Return columns of a table as floats, (keys, rows), of the rows that have the values given."""
    rows = [row for row in table if where.items() <= row.items()]
    return np.array([[row[key] for row in rows] for key in keys], dtype=float)


def lifted(values: Any, least: float | None = None) -> Array:
    """Return numbers with zeros where a logarithmic axis shows them, by default a tenth of the least positive one."""
    values = np.asarray(values, dtype=float)
    if least is None:
        above = values[np.isfinite(values) & (values > 0)]
        least = float(above.min()) / 10 if above.size else 1e-16
    return np.where(values == 0, least, values)


def whiskers(middle: Any, low: Any, high: Any) -> Array:
    """Return how far lines reach below and above marks, (2, marks): 0 where a mean of equal values is off by rounding.

    Args:
        middle: The marks.
        low: Least values.
        high: Greatest values.
    """
    middle, low, high = (np.atleast_1d(np.asarray(it, dtype=float)) for it in (middle, low, high))
    return np.stack([np.maximum(middle - low, 0), np.maximum(high - middle, 0)])


def save(
    drawn: Drawn, path_without_suffix: str | os.PathLike[str], formats: Sequence[str] = ("svg", "png")
) -> list[Path]:
    """Write a figure in some formats, and its table as JSON, each file replaced atomically.

    Everything is rendered before the first file is touched. The same figure gives the same bytes under one version of
    matplotlib: no dates, no random names.

    Args:
        drawn: What a function of this package returned.
        path_without_suffix: Where to; ".svg", ".png" and ".json" are added.
        formats: File formats of matplotlib, such as "svg", "png", "pdf".

    Returns:
        The paths, those of the figures first.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: matplotlib does not know a format.

    Example:
        >>> import tempfile
        >>> from loopgrad.analysis.plots import Trade, pareto, save
        >>> drawn = pareto([Trade("bptt", 2**30, 80, 70, 90)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in save(drawn, f"{folder}/figure")]
        ['figure.svg', 'figure.png', 'figure.json']
    """
    contents = rendered(drawn, formats)
    paths = {suffix: Path(f"{os.fspath(path_without_suffix)}.{suffix}") for suffix in contents}
    for suffix, content in contents.items():
        replace_bytes(paths[suffix], content)
    return list(paths.values())


def rendered(drawn: Drawn, formats: Sequence[str] = ("svg", "png")) -> dict[str, bytes]:
    """Return the contents of a figure's files by their suffix, its table as "json" last; `save` writes them.

    Args:
        drawn: What a function of this package returned.
        formats: As of `save`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: matplotlib does not know a format.
    """
    contents = {}
    with drawing():
        for name in formats:
            # what would hold the time of day
            dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(name)
            buffer = io.BytesIO()
            # of a copy: the layout of one rendering would be where that of the next starts from
            copy = pickle.loads(pickle.dumps(drawn.figure))
            copy.savefig(buffer, format=name, dpi=300, metadata=dated)
            contents[name] = buffer.getvalue()
    contents["json"] = (json.dumps(drawn.table, indent=1, allow_nan=False) + "\n").encode()
    return contents
