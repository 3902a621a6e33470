"""Figures of a comparison, drawn from records alone: print-ready PNG and SVG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loopgrad.experiments.summary import by_estimator, spread

Record = dict[str, Any]

# Okabe and Ito's palette, told apart by colour-blind readers; line styles tell the lines apart in print
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
STYLES = ("-", (0, (5, 2)), (0, (1, 1)), (0, (3, 1, 1, 1)))
MARKERS = "osD^vP*X"


def draw(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw comparison.{png,svg} and residuals.{png,svg}; return the PNG paths, none without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("agg")
    from matplotlib import pyplot

    style: Any = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"}
    style |= {"svg.hashsalt": "loopgrad"}  # the same records give the same bytes
    paths = []
    with pyplot.rc_context(style):
        for name, make in (("comparison", _comparison), ("residuals", _residuals)):
            figure = make(records, pyplot)
            for suffix in ("svg", "png"):
                metadata = {"Date": None} if suffix == "svg" else None
                figure.savefig(folder / f"{name}.{suffix}", dpi=200, metadata=metadata)
            pyplot.close(figure)
            paths.append(folder / f"{name}.png")
    return paths


def _comparison(records: Sequence[Record], pyplot: Any) -> Any:
    groups = by_estimator(records)
    figure, (curve, cost, angle) = pyplot.subplots(1, 3, figsize=(7.0, 2.6), layout="constrained")
    figure.suptitle(f"{records[0]['model']} on {records[0]['task']}, {_seeds(records)}", fontsize=8)
    for index, (name, group) in enumerate(groups.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        steps = group[0]["curve"]["step"]
        rows = [[100 * value for value in record["curve"]["exact_accuracy"]] for record in group]
        columns = list(zip(*rows, strict=True))
        means = [sum(column) / len(column) for column in columns]
        line = STYLES[index % len(STYLES)]
        curve.plot(steps, means, color=colour, linestyle=line, marker=marker, ms=3, label=name)
        curve.fill_between(steps, list(map(min, columns)), list(map(max, columns)), color=colour, alpha=0.15, lw=0)
        accuracy = spread(group, "exact_accuracy")
        saved = spread(group, "saved_bytes").mean / 2**20
        error = [[100 * (accuracy.mean - accuracy.low)], [100 * (accuracy.high - accuracy.mean)]]
        cost.errorbar([saved], [100 * accuracy.mean], error, fmt=marker, ms=5, color=colour, capsize=2)
        ratio = spread(group, "time_ratio_to_bptt").mean
        angle.plot([ratio], [spread(group, "gradient_cosine").mean], marker, ms=5, color=colour)
    curve.set(xlabel="optimiser step", ylabel="held-out samples exact (%)", ylim=(-2, 102))
    cost.set(xlabel="saved for backward (MiB)", ylabel="held-out samples exact (%)")
    if any(record["saved_bytes"] for record in records):  # matplotlib warns about an empty logarithmic axis
        cost.set_xscale("log")
    angle.set(xlabel="time of a step / BPTT's", ylabel="gradient cosine with BPTT", ylim=(-0.05, 1.05))
    curve.set_xlim(left=0)
    cost.xaxis.set_major_formatter("{x:g}")
    angle.set_xlim(0, 1.1 * angle.get_xlim()[1])
    figure.legend(loc="outside lower center", ncols=len(groups), frameon=False)
    return figure


def _residuals(records: Sequence[Record], pyplot: Any) -> Any:
    from matplotlib.ticker import LogLocator

    groups = by_estimator(records)
    streams = list(records[0]["residual_curve"])
    size = (3.4 * len(streams), 2.6)
    figure, axes = pyplot.subplots(
        1, len(streams), figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for axis, stream in zip(axes[0], streams, strict=True):
        for index, (name, group) in enumerate(groups.items()):
            curves = [record["residual_curve"][stream] for record in group]
            points = [(t + 1, [c[t] for c in curves if c[t] is not None]) for t in range(len(curves[0]))]
            points = [(t, values) for t, values in points if values and min(values) > 0]
            steps = [t for t, _ in points]
            means = [sum(values) / len(values) for _, values in points]
            colour, line = COLOURS[index % len(COLOURS)], STYLES[index % len(STYLES)]
            axis.plot(steps, means, color=colour, linestyle=line, marker=".", label=name)
        axis.set(title=stream, xlabel="update in the second segment", yscale="log")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_formatter("")
    axes[0][0].set_ylabel("||z(t+1) - z(t)|| / scale, median")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(groups), frameon=False)
    return figure


def _seeds(records: Sequence[Record]) -> str:
    count = len({record["seed"] for record in records})
    return f"{count} seeds: mean, least and greatest" if count > 1 else "one seed"
