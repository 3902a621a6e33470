"""The report of one claim: verdict, paragraph, figure, tables, and how to repeat it."""

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from loopgrad.analysis import plots
from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.records import ClaimRecord, TrainedRecord
from loopgrad.experiments.reports.claims import html
from loopgrad.experiments.reports.claims.verdicts import findings, verdict
from loopgrad.experiments.reports.claims.words import by_condition, paragraph, scores
from loopgrad.experiments.reports.html import Chart, document
from loopgrad.experiments.reports.inert import code, figure, inert, markdown, prose, shown
from loopgrad.experiments.reports.tables import console_table, how_made, table
from loopgrad.experiments.reports.whole import making, rendered, say, write

LEGEND = """\
exact: held-out samples solved, by the task's rules, in percent: mean, least and greatest seed. saved, peak, GFLOPs: of
the last training step, peak with gradients, recomputation included; TFLOPs: that times the number of steps. x@n:
reading x at n."""
AXES = {
    "learning": ("optimiser step", False),
    "segments": ("segments at test", True),
    "lengths": ("length at test", True),
}

PLACE = re.compile("[0-9]{1,9}")  # on the axis of a figure


def render(folder: Path, console: Console) -> None:
    """Write report.md, report.html and the figure beside the record of a claim, and print its table.

    Raises:
        ConfigError: There is no record, or it is not that of a claim.
    """
    path = folder / "records.jsonl"
    record = read(folder)
    with making(path):
        outcome = verdict(findings(record))
        figures, missing = _figures(inert(record, figure))
        page = _markdown(inert(record, prose), record)
        page += "".join(f"\n![claim]({name})\n" for name in figures if name.endswith(".png"))
        printed = inert(record, shown)
        header, rows = conditions_table(printed, brief=True)
        single = document(html.page(printed, outcome, conditions_table(printed), _charts(printed)))
        told = paragraph(printed, findings(printed), outcome).replace("**", "")
    write(folder, page, figures, single)
    if missing:
        say(console, f"No figure: {missing}.")
    console.print(console_table(header, rows, header[:1]))
    say(console, told)
    say(console, f"Report, figure and record are in {folder}")


def read(folder: Path) -> ClaimRecord:
    """Read the record of a claim.

    Raises:
        ConfigError: There is none, or it is not that of a claim.
    """
    path = folder / "records.jsonl"
    found = records.read(path, ClaimRecord)
    if len(found) != 1:
        raise ConfigError(f"{path}: holds {len(found)} records, and a claim has one")
    return found[0]


def conditions_table(record: ClaimRecord, brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return the header and a row per condition; brief: accuracy and costs alone."""
    groups = by_condition(record["trainings"])
    names = list(dict.fromkeys(name for run in record["trainings"] for name in run["readings"]))
    own = ["exact"] if brief else names
    header = ["condition", *own, "weights", "saved MiB", "peak MiB", "GFLOPs", "TFLOPs", "seconds"]
    return header, [[name, *(scores(runs, it) for it in own), *_costs(runs)] for name, runs in groups.items()]


def _costs(runs: Sequence[TrainedRecord]) -> list[str]:
    def mean(values: Iterable[float | None], form: str) -> str:
        known = [value for value in values if value is not None]
        return f"{sum(known) / len(known):{form}}" if known else "-"

    whole = (None if it["flops"] is None else it["flops"] * it["train_steps"] / 1e12 for it in runs)
    return [
        f"{runs[0]['parameters']:,}",
        mean((it["saved_bytes"] and it["saved_bytes"] / 2**20 for it in runs), ".2f"),
        mean((it["peak_bytes"] and it["peak_bytes"] / 2**20 for it in runs), ".2f"),
        mean((it["flops"] and it["flops"] / 1e9 for it in runs), ".3g"),
        mean(whole, ".3g"),
        mean((it["train_seconds"] for it in runs), ".0f"),
    ]


def _markdown(record: ClaimRecord, raw: ClaimRecord) -> str:
    found = findings(raw)
    header, rows = conditions_table(record)
    return "\n".join(
        [
            f"# {record['title']}",
            *("", paragraph(record, findings(record), verdict(found)), ""),
            *(*table(header, rows), "", LEGEND, ""),
            *("## Conditions", "", *_commands(raw), ""),
            *(["Sources: " + ", ".join(record["sources"]) + ".", ""] if record["sources"] else []),
            *how_made(raw),
            "",
        ]
    )


def _commands(record: ClaimRecord) -> Iterator[str]:
    for name, runs in by_condition(record["trainings"]).items():
        typed = shlex.join(["loopgrad", "train", *runs[0]["overrides"], f"seed={runs[0]['seed']}"])
        yield f"- {markdown(name)}: {code(typed)}"


def _figures(record: ClaimRecord) -> tuple[dict[str, bytes], str]:
    try:
        return rendered([("claim", draw(record))]), ""
    except ImportError:
        return {}, "matplotlib is missing (pip install 'loopgrad[plots]')"


def draw(record: ClaimRecord) -> plots.Drawn:
    """Draw the figure of a claim.

    Raises:
        ImportError: matplotlib is not installed.
    """
    kind = record["figure"]
    xlabel, log = AXES.get(kind, (kind, False))
    return plots.conditions(
        [_course(run, kind) for run in record["trainings"]], xlabel, "held-out samples exact (%)", log
    )


def _charts(record: ClaimRecord) -> list[Chart]:
    kind = record["figure"]
    xlabel, log = AXES.get(kind, (kind, False))
    courses = [_course(run, kind) for run in record["trainings"]]
    points = [(it.condition, list(zip(it.x, it.values, strict=False))) for it in courses]
    return [html.chart(kind, points, xlabel, log)]


def _course(run: TrainedRecord, kind: str) -> plots.Course:
    if kind == "learning":
        steps, values = run["curve"]["step"], run["curve"]["exact_accuracy"]
        return plots.Course(run["condition"], steps, [100 * value for value in values])
    parts = ((*name.partition("@"), value) for name, value in run["readings"].items())
    found = {int(place): value for name, _, place, value in parts if name == kind and PLACE.fullmatch(place)}
    return plots.Course(run["condition"], list(found), [None if it is None else 100 * it for it in found.values()])
