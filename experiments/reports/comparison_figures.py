"""The figures of a comparison, drawn from records alone."""

from collections.abc import Sequence
from pathlib import Path

from loopgrad.analysis import plots
from loopgrad.experiments.records import RunRecord


def draw(records: Sequence[RunRecord], folder: Path) -> list[Path]:
    """Draw comparison and residuals; return the paths of the PNGs, none without matplotlib."""
    runs = [_run(record) for record in records]
    count = len({record["seed"] for record in records})
    seeds = f"{count} seeds: mean, least and greatest" if count > 1 else "one seed"
    title = f"{records[0]['model']} on {records[0]['task']}, {seeds}"
    try:
        drawn = {
            "comparison": plots.accuracy_and_cost(runs, title),
            "residuals": plots.residuals_by_estimator(runs, "update in the second segment"),
        }
    except ImportError:
        return []
    for name, figure in drawn.items():
        plots.save(figure, folder / name)
    return [folder / f"{name}.png" for name in drawn]


def _run(record: RunRecord) -> plots.Run:
    return plots.Run(
        estimator=record["estimator"],
        steps=record["curve"]["step"],
        accuracies=[100 * value for value in record["curve"]["exact_accuracy"]],
        accuracy=100 * (record["exact_accuracy"] or 0),
        bytes=record["saved_bytes"] or 0,
        time_ratio=record["time_ratio_to_bptt"],
        cosine=record["gradient_cosine"],
        residuals=record["residual_curve"],
    )
