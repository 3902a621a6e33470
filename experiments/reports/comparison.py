"""The report of a comparison: table, sentence, figures and provenance, rendered from records.jsonl alone."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from loopgrad.analysis import plots
from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.records import RunRecord
from loopgrad.experiments.reports import summary
from loopgrad.experiments.reports.tables import console_table, how_made, table

LEGEND = """\
exact: held-out samples solved, by the task's rules; tokens: scored tokens right; loss: held-out cross entropy.
time: forward and backward of one training step beside BPTT's, median of rounds timed in turn.
saved: bytes kept for backward when the forward pass ends; peak: most bytes alive at once in the two passes, gradients
included; evaluations, vjps, FLOPs: of one training step, recomputation included.
cosine, rel. error: gradient against float64 BPTT on the same batch and carry, at the run's own final weights.
residual: ||F(z) - z|| over the scale of the states, F the joint map of one cycle, at the point where the gradient
is taken, in the dtype of training; median over samples. trusted: share of training samples whose implicit
gradient passed the gate, mean over all steps. Values are means over seeds, least and greatest in brackets."""


def render(folder: Path, console: Console) -> None:
    """Write report.md and the figures beside records.jsonl, and print the table.

    Raises:
        ConfigError: There are no records, or they are not those of a comparison.
    """
    try:
        found = records.read(folder / "records.jsonl", records.fields_of(RunRecord))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    try:
        header, rows = summary.table(found)
        sentence = summary.reading(found)
        markdown = _markdown(found, header, rows, sentence)
        drawn = draw(found, folder)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:  # nested values are read unchecked
        raise ConfigError(f"{folder / 'records.jsonl'}: these are not records of one comparison: {error!r}") from error
    if not drawn:
        console.print("No figures: matplotlib is missing (pip install 'loopgrad[plots]').")
    records.replace_text(folder / "report.md", markdown + "".join(f"\n![{path.stem}]({path.name})\n" for path in drawn))
    # two narrow tables read better than one that a terminal has to fold; report.md has one, with every spread
    every = summary.columns_of(found)
    for columns in (every[:6], every[6:]):
        header, rows = summary.table(found, columns, always_spread=False)
        console.print(console_table(header, rows, header[:1]))
    console.print(sentence)
    console.print(f"Report, figures and records are in {folder}")


def _markdown(found: Sequence[RunRecord], header: list[str], rows: list[list[str]], sentence: str) -> str:
    first = found[0]
    seeds = ", ".join(str(seed) for seed in sorted({record["seed"] for record in found}))
    return "\n".join(
        [
            f"# {first['model']} on {first['task']}",
            *("", sentence, "", *table(header, rows), "", LEGEND, ""),
            *("## Residuals", "", *_residuals(found), "", *how_made(first)),
            f"- seeds: {seeds}; {first['train_steps']} steps; probes on {first['probe']['samples']} held-out samples, "
            f"segment {first['probe']['segment']}",
            "",
        ]
    )


def _residuals(found: Sequence[RunRecord]) -> list[str]:
    streams = [name for name, value in found[0]["residuals"].items() if isinstance(value, dict) and "map" in value]
    rows = [
        [name, stream, *(_quantiles(group, stream, kind) for kind in ("update_relative", "map_relative"))]
        for name, group in summary.by_estimator(found).items()
        for stream in streams
    ]
    header = ["estimator", "stream", "last update", "cycle map at the gradient"]
    return ["Relative residuals, medians over samples (5-95 %), mean over seeds.", "", *table(header, rows)]


def _quantiles(group: list[RunRecord], stream: str, kind: str) -> str:
    if kind not in group[0]["residuals"][stream]:
        return "-"
    return summary.band(*(summary.spread(group, "residuals", stream, kind, i).mean for i in range(3)))


def draw(found: Sequence[RunRecord], folder: Path) -> list[Path]:
    """Draw comparison and residuals; return the paths of the PNGs, none without matplotlib."""
    runs = [_run(record) for record in found]
    count = len({record["seed"] for record in found})
    seeds = f"{count} seeds: mean, least and greatest" if count > 1 else "one seed"
    title = f"{found[0]['model']} on {found[0]['task']}, {seeds}"
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
