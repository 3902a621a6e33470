"""loopgrad report: render table, sentence and figures from records.jsonl alone.

loopgrad report output_dir=results/compare
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loopgrad.experiments import analysis_report, figures, records, summary
from loopgrad.experiments.overrides import ConfigError
from loopgrad.experiments.plans import Names, output_folder

LEGEND = """\
exact: held-out samples solved, by the task's rules; tokens: scored tokens right; loss: held-out cross entropy.
time: forward and backward of one training step beside BPTT's, median of rounds timed in turn.
saved: bytes kept for backward when the forward pass ends; peak: most bytes alive at once in the two passes, gradients
included; evaluations, vjps, FLOPs: of one training step, recomputation included.
cosine, rel. error: gradient against float64 BPTT on the same batch and carry, at the run's own final weights.
residual: ||F(z) - z|| over the scale of the states, F the joint map of one cycle, at the point where the gradient
is taken, in the dtype of training; median over samples. trusted: share of training samples whose implicit
gradient passed the gate, mean over all steps. Values are means over seeds, least and greatest in brackets."""

NUMBER = (int, float, type(None))
FIELDS = {
    **dict.fromkeys(("estimator", "task", "model", "kind", "commit", "date", "device", "command"), (str,)),
    **dict.fromkeys(("seed", "train_steps"), (int,)),
    **dict.fromkeys(("versions", "probe", "curve", "residuals", "residual_curve"), (dict,)),
    **dict.fromkeys(
        ("loss", "exact_accuracy", "token_accuracy", "seconds_per_step", "time_ratio_to_bptt", "saved_bytes"), NUMBER
    ),
    **dict.fromkeys(
        ("peak_bytes", "cell_evaluations", "vjps", "flops", "gradient_cosine", "gradient_relative_error"), NUMBER
    ),
}
"""What a record must hold for its report to be rendered."""


def main(config: DictConfig, names: Names, console: Console) -> None:
    """Render the report of the records in output_dir, of a comparison or of an analysis."""
    folder = output_folder(config)
    try:
        analysis = "depths" in records.read(folder / "records.jsonl")[0]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    (analysis_report.render if analysis else render)(folder, console)


def render(folder: Path, console: Console) -> None:
    """Write report.md and the figures beside records.jsonl, and print the table.

    Raises:
        ConfigError: There are no records, or they are not those of a comparison.
    """
    try:
        found = records.read(folder / "records.jsonl", FIELDS)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    try:
        header, rows = summary.table(found)
        sentence = summary.reading(found)
        markdown = _markdown(found, header, rows, sentence)
        drawn = figures.draw(found, folder)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:  # nested values are read unchecked
        raise ConfigError(f"{folder / 'records.jsonl'}: these are not records of one comparison: {error!r}") from error
    if not drawn:
        console.print("No figures: matplotlib is missing (pip install 'loopgrad[plots]').")
    records.replace_text(folder / "report.md", markdown + "".join(f"\n![{path.stem}]({path.name})\n" for path in drawn))
    # two narrow tables read better than one that a terminal has to fold; report.md has one, with every spread
    every = summary.columns_of(found)
    for columns in (every[:6], every[6:]):
        header, rows = summary.table(found, columns, always_spread=False)
        shown = Table(box=SIMPLE_HEAD, padding=(0, 0))
        for title in header:
            shown.add_column(title, no_wrap=title == header[0], justify="left" if title == header[0] else "right")
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    console.print(sentence)
    console.print(f"Report, figures and records are in {folder}")


def _markdown(found: Sequence[dict[str, Any]], header: list[str], rows: list[list[str]], sentence: str) -> str:
    first = found[0]
    lines = [f"# {first['model']} on {first['task']}", "", sentence, ""]
    lines += ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", LEGEND, "", "## Residuals", "", *_residuals(found), "", "## How this was made", ""]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    seeds = ", ".join(str(seed) for seed in sorted({record["seed"] for record in found}))
    lines += [
        f"- command: `{first['command']}`",
        f"- commit: {first['commit']}; date: {first['date']}",
        f"- device: {first['device']}",
        f"- versions: {versions}",
        f"- seeds: {seeds}; {first['train_steps']} steps; probes on {first['probe']['samples']} held-out samples, "
        f"segment {first['probe']['segment']}",
    ]
    return "\n".join(lines) + "\n"


def _residuals(found: Sequence[dict[str, Any]]) -> list[str]:
    streams = [name for name, value in found[0]["residuals"].items() if isinstance(value, dict) and "map" in value]
    lines = ["Relative residuals, medians over samples (5-95 %), mean over seeds.", ""]
    lines += ["| estimator | stream | last update | cycle map at the gradient |", "| --- | --- | --- | --- |"]
    for name, group in summary.by_estimator(found).items():
        for stream in streams:
            cells = [_band(group, stream, kind) for kind in ("update_relative", "map_relative")]
            lines.append(f"| {name} | {stream} | {' | '.join(cells)} |")
    return lines


def _band(group: list[dict[str, Any]], stream: str, kind: str) -> str:
    if kind not in group[0]["residuals"][stream]:
        return "-"
    low, middle, high = (summary.spread(group, "residuals", stream, kind, i).mean for i in range(3))
    return f"{middle:.2g} ({low:.2g}-{high:.2g})"
