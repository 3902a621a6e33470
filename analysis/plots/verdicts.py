"""What becomes of the samples, run beside run: shares of verdicts as stacked bars."""

from collections.abc import Mapping

from loopgrad.analysis.intervals import wilson_interval
from loopgrad.analysis.plots.style import PAGE, Drawn, Row, columns_of, look, number, panels, whiskers
from loopgrad.analysis.verdicts import LABELS


def verdict_bars(rows: Mapping[str, Mapping[str, int]], label: str = "converged") -> Drawn:
    """Draw a bar per row, its shares of verdicts stacked, with Wilson's 95 % interval of one of them.

    Args:
        rows: Name of a model, estimator or checkpoint -> verdict -> number of samples, as `Verdicts.counts` returns.
        label: Verdict that is stacked first and has the interval.

    Returns:
        The figure, and a table row per bar segment; low and high are those of the interval.

    Not recommended when:
        Samples are not independent, such as augmentations of one puzzle: the intervals are too
        narrow. See `bootstrap_interval`.

    Raises:
        ValueError: rows is empty, a label is not a verdict, or a count is negative.

    Example:
        >>> from loopgrad.analysis.plots import verdict_bars
        >>> drawn = verdict_bars({"bptt": {"cycle": 3, "converged": 1}})
        >>> [(row["row"], row["label"], row["share"]) for row in drawn.table]
        [('bptt', 'converged', 0.25), ('bptt', 'cycle', 0.75)]
    """
    if not rows:
        raise ValueError("rows is empty: there is no bar to draw")
    look(label)
    table = [part for name, counts in rows.items() for part in _parts(name, counts, label)]
    order = {name: i for i, name in enumerate(rows)}
    with panels(PAGE, 0.9 + 0.2 * len(rows)) as (figure, axes):
        axis = axes[0, 0]
        seen = [label, *(other for other in LABELS if other != label)]
        for verdict in (v for v in seen if any(part["label"] == v for part in table)):
            parts = [part for part in table if part["label"] == verdict and part["total"]]
            colour, _, _, hatch = look(verdict)
            share, left = 100 * columns_of(parts, "share", "left")
            style = {"height": 0.72, "color": colour, "hatch": hatch, "edgecolor": "#333333", "lw": 0.4}
            axis.barh([order[part["row"]] for part in parts], share, left=left, label=verdict, **style)
        for part in (part for part in table if part["label"] == label and part["total"]):
            share, low, high = (100 * part[key] for key in ("share", "low", "high"))
            error = whiskers(share, low, high)
            # white below black: seen on every colour
            for colour, width in (("white", 2.6), ("black", 1.0)):
                axis.errorbar(share, order[part["row"]], xerr=error, fmt="none", ecolor=colour, lw=width, capsize=2)
        for name, i in order.items():
            axis.text(101, i, f"n={sum(rows[name].values())}", va="center", fontsize=7)
        axis.set(xlim=(0, 100), ylim=(len(rows) - 0.4, -0.6), xlabel="share of samples (%)")
        axis.set_yticks(range(len(rows)), list(rows))
        axis.tick_params(axis="y", length=0)
    return Drawn(figure, table)


def _parts(name: str, counts: Mapping[str, int], label: str) -> list[Row]:
    for verdict, count in counts.items():
        look(verdict)
        if count < 0:
            raise ValueError(f"rows[{name!r}][{verdict!r}] is a number of samples, got {count}")
    total, left = sum(counts.values()), 0
    parts: list[Row] = []
    for verdict in [label, *(other for other in LABELS if other != label)]:
        count = int(counts.get(verdict, 0))
        if not count and verdict != label:
            continue
        low, high = wilson_interval(count, int(total)) if total and verdict == label else (None, None)
        parts.append({"row": name, "label": verdict, "count": count, "total": int(total)})
        parts[-1] |= {"left": left / total if total else None, "share": count / total if total else None}
        parts[-1] |= {"low": number(low), "high": number(high)}
        left += count
    return parts
