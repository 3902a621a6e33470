"""Estimators compared in training: accuracy, memory, time, agreement with BPTT, and how their residuals fall."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from loopgrad.analysis.plots.style import (
    COLUMN,
    PAGE,
    Drawn,
    Look,
    Row,
    columns_of,
    grouped,
    label_log,
    lifted,
    looks,
    number,
    panels,
    whiskers,
)


class Run(NamedTuple):
    """One training of one estimator, by one seed.

    Attributes:
        estimator: Its name; runs of one estimator are its seeds.
        steps: Steps of the optimiser, when each of `accuracies` was taken.
        accuracies: Accuracies of held-out samples, or of their tokens, in percent.
        accuracy: In percent, at the end.
        bytes: Saved for backward.
        time_ratio: Time of a step over that of BPTT; None if it was not taken.
        cosine: Cosine of the gradient with that of BPTT; None if it was not taken.
        residuals: Stream -> relative residual after each update, None where the stream was not updated.
    """

    estimator: str
    steps: Sequence[int]
    accuracies: Sequence[float]
    accuracy: float
    bytes: float
    time_ratio: float | None = None
    cosine: float | None = None
    residuals: Mapping[str, Sequence[float | None]] = {}


class Case(NamedTuple):
    """A comparison of several that are drawn together.

    Attributes:
        name: What was trained, over how many seeds.
        runs: Its runs.
        accuracy: What is accurate.
    """

    name: str
    runs: Sequence[Run]
    accuracy: str = "held-out samples exact (%)"


def accuracy_and_cost(runs: Sequence[Run], title: str = "", accuracy: str = "held-out samples exact (%)") -> Drawn:
    """Draw accuracy over training and over memory, and the cosine with BPTT's gradient over time.

    Marks are means over the seeds; bands and bars reach from the least to the greatest. No bytes at all are drawn at a
    tenth of the least other.

    Args:
        runs: Runs of one or more estimators, in the order in which they are to be named.
        title: Above the figure: what was trained, over how many seeds.
        accuracy: What is accurate.

    Returns:
        The figure, and a row per estimator and evaluation, then a row per estimator with what it reached and cost.

    Not recommended when:
        Estimators trained for different numbers of steps: the last accuracies then differ in that.

    Raises:
        ValueError: runs is empty, or the runs of an estimator were evaluated at different steps.

    Example:
        >>> from loopgrad.analysis.plots import Run, accuracy_and_cost
        >>> drawn = accuracy_and_cost([Run("bptt", [50, 100], [40, 90], 90, 2**20, 1.0, 1.0)])
        >>> [axis.get_xlabel() for axis in drawn.figure.axes]
        ['optimiser step', 'saved for backward (MiB)', "time of a step / BPTT's"]
    """
    curves, ends = _numbers(runs)
    with panels(PAGE, 2.6, 1, 3) as (figure, axes):
        figure.suptitle(title, fontsize=8)
        _fill(axes[0], curves, ends, looks(row["estimator"] for row in ends), accuracy)
    return Drawn(figure, curves + ends)


def accuracy_and_cost_by_case(cases: Sequence[Case]) -> Drawn:
    """Draw several comparisons below each other, a row of panels as of `accuracy_and_cost` for each.

    An estimator of one name has one colour, line and marker in all of them; accuracies have the same scale.

    Args:
        cases: The comparisons, from above to below.

    Returns:
        The figure, and of each case the rows of `accuracy_and_cost` with the case's name before them.

    Not recommended when:
        There are more than six or so: a page holds no more.

    Raises:
        ValueError: cases is empty, or the runs of one are, or were evaluated at different steps.

    Example:
        >>> from loopgrad.analysis.plots import Case, Run, accuracy_and_cost_by_case
        >>> runs = [Run("bptt", [50, 100], [40, 90], 90, 2**20, 1.0, 1.0)]
        >>> drawn = accuracy_and_cost_by_case([Case("sudoku", runs), Case("copy", runs)])
        >>> len(drawn.figure.axes), [row["case"] for row in drawn.table]
        (6, ['sudoku', 'sudoku', 'sudoku', 'copy', 'copy', 'copy'])
    """
    if not cases:
        raise ValueError("cases is empty: there is nothing to draw")
    numbers = [_numbers(case.runs) for case in cases]
    shown = looks(row["estimator"] for _, ends in numbers for row in ends)
    with panels(PAGE, 0.7 + 1.9 * len(cases), len(cases), 3) as (figure, axes):
        for line, case, (curves, ends) in zip(axes, cases, numbers, strict=True):
            _fill(line, curves, ends, shown, case.accuracy)
            line[0].set_title(case.name, loc="left").set_in_layout(False)  # it may reach over all three panels
            line[0].set_title(" ")  # which keeps the height that it needs
            for axis in line[:2]:  # room for marks at 0 and 100 %
                axis.set_ylim(-4, 106)
            line[1].set_ylabel("")
        for axis in axes[:-1].flat:
            axis.set_xlabel("")
    return Drawn(
        figure, [{"case": case.name, **row} for case, it in zip(cases, numbers, strict=True) for row in sum(it, [])]
    )


def _numbers(runs: Sequence[Run]) -> tuple[list[Row], list[Row]]:
    """Return a row per estimator and evaluation, and a row per estimator with what it reached and cost."""
    curves: list[Row] = []
    ends: list[Row] = []
    for name, group in grouped(runs, "runs", "estimator").items():
        steps = list(group[0].steps)
        if any(list(run.steps) != steps or len(run.accuracies) != len(steps) for run in group):
            raise ValueError(f"runs: those of {name} must have one accuracy at each of the same steps")
        for step, *values in zip(steps, *(run.accuracies for run in group), strict=True):
            curves.append({"estimator": name, "step": int(step), **_range(values)})
        ends.append({"estimator": name, **_range([run.accuracy for run in group])})
        for key in ("bytes", "time_ratio", "cosine"):
            ends[-1][key] = _mean(getattr(run, key) for run in group)
    return curves, ends


def _fill(axes: Any, curves: Sequence[Row], ends: Sequence[Row], shown: Mapping[str, Look], accuracy: str) -> None:
    """Draw the numbers of one comparison on its three panels."""
    curve, cost, angle = axes
    memory = np.array([row["bytes"] for row in ends], dtype=float) / 2**20
    for end, size in zip(ends, lifted(memory), strict=True):
        name = end["estimator"]
        colour, line, marker, _ = shown[name]
        x, mean, low, high = columns_of(curves, "step", "accuracy", "low", "high", estimator=name)
        curve.plot(x, mean, color=colour, ls=line, marker=marker, ms=3, label=name)
        curve.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        mean, low, high = columns_of([end], "accuracy", "low", "high")
        cost.errorbar([size], mean, whiskers(mean, low, high), fmt=marker, ms=5, color=colour, capsize=2)
        angle.plot(*columns_of([end], "time_ratio", "cosine"), marker, ms=5, color=colour)
    curve.set(xlabel="optimiser step", ylabel=accuracy, ylim=(-2, 102))
    curve.set_xlim(left=0)
    cost.set(xlabel="saved for backward (MiB)", ylabel=accuracy)
    if (memory > 0).any():  # matplotlib warns about an empty logarithmic axis
        cost.set_xscale("log")
        label_log(cost.xaxis)
    angle.set(xlabel="time of a step / BPTT's", ylabel="gradient cosine with BPTT")
    angle.set(xlim=(0, 1.1 * angle.get_xlim()[1]), ylim=(min(-0.05, angle.get_ylim()[0]), 1.05))


def residuals_by_estimator(runs: Sequence[Run], xlabel: str = "update") -> Drawn:
    """Draw how the residual of each stream falls along the updates under each estimator, the mean over its seeds.

    An update at which any seed has a residual of zero is in the table and not in the figure.

    Args:
        runs: Runs of one or more estimators, with residuals of the same streams.
        xlabel: Which updates these are.

    Returns:
        The figure, and a row per estimator, stream and update at which the stream was updated.

    Not recommended when:
        One recursion is to be judged: `residuals` shows its samples and the rounding floor.

    Raises:
        ValueError: runs is empty or has no residuals, or their streams or numbers of updates differ.

    Example:
        >>> from loopgrad.analysis.plots import Run, residuals_by_estimator
        >>> runs = [Run("bptt", [], [], 90, 2**20, residuals={"z_L": [0.5, 0.1, None], "z_H": [None, None, 0.2]})]
        >>> [(row["stream"], row["update"]) for row in residuals_by_estimator(runs).table]
        [('z_L', 1), ('z_L', 2), ('z_H', 3)]
    """
    groups = grouped(runs, "runs", "estimator")
    lengths = {stream: len(values) for stream, values in runs[0].residuals.items()}
    if not lengths or any({s: len(v) for s, v in run.residuals.items()} != lengths for run in runs):
        raise ValueError("runs: all need residuals of the same streams and as many updates")
    table: list[Row] = []
    for name, group in groups.items():
        for stream in lengths:
            for update, found in enumerate(zip(*(run.residuals[stream] for run in group), strict=True), 1):
                if values := [value for value in found if value is not None]:
                    row: Row = {"estimator": name, "stream": stream, "update": update, "residual": _mean(values)}
                    table.append({**row, "zeros": sum(value == 0 for value in values)})
    with panels(COLUMN * len(lengths), 2.6, 1, len(lengths), sharex=True, sharey=True) as (figure, axes):
        for axis, stream in zip(axes[0], lengths, strict=True):
            for name, look in looks(groups).items():
                x, y = columns_of(table, "update", "residual", estimator=name, stream=stream, zeros=0)
                axis.plot(x, y, marker=".", ms=6, color=look.colour, ls=look.line, label=name)
            axis.set(title=stream, xlabel=xlabel, yscale="log")
            axis.xaxis.get_major_locator().set_params(integer=True)
            label_log(axis.yaxis)
        axes[0, 0].set_ylabel("||z(t+1) - z(t)|| / scale, median")
    return Drawn(figure, table)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return number(np.mean(known)) if known else None


def _range(values: Sequence[float]) -> Row:
    return {"accuracy": _mean(values), "low": number(min(values)), "high": number(max(values))}
