"""The report of one claim: verdict, paragraph, figure, tables, and how to repeat it."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from loopgrad.analysis import plots
from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.records import ClaimRecord, TrainedRecord
from loopgrad.experiments.reports.claims.verdicts import findings, verdict
from loopgrad.experiments.reports.claims.words import by_condition, paragraph, scores
from loopgrad.experiments.reports.inert import code, figure, inert, markdown, prose, shown
from loopgrad.experiments.reports.tables import console_table, how_made, table
from loopgrad.experiments.reports.whole import making, rendered, say, write

LEGEND = """\
exact: held-out samples solved, by the task's rules, in percent: mean, least and greatest seed. saved, peak, GFLOPs: of
one training step, peak with gradients, recomputation included; TFLOPs: of all steps. x@n: reading x at n."""
AXES = {
    "learning": ("optimiser step", False),
    "segments": ("segments at test", True),
    "lengths": ("length at test", True),
}


def render(folder: Path, console: Console) -> str:
    """Write report.md and the figure beside the record of a claim, print its table, and return the verdict.

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
        told = paragraph(printed, findings(printed), outcome).replace("**", "")
    write(folder, page, figures)
    if missing:
        say(console, f"No figure: {missing}.")
    console.print(console_table(header, rows, header[:1]))
    say(console, told)
    say(console, f"Report, figure and record are in {folder}")
    return outcome


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
    def mean(name: str) -> float:
        return sum(it[name] or 0 for it in runs) / len(runs)

    whole = sum((it["flops"] or 0) * it["train_steps"] for it in runs) / len(runs)
    return [
        f"{runs[0]['parameters']:,}",
        f"{mean('saved_bytes') / 2**20:.2f}",
        f"{mean('peak_bytes') / 2**20:.2f}",
        f"{mean('flops') / 1e9:.3g}",
        f"{whole / 1e12:.3g}",
        f"{mean('train_seconds'):.0f}",
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
            *(f"Sources: {', '.join(record['sources'])}.", ""),
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


def _course(run: TrainedRecord, kind: str) -> plots.Course:
    if kind == "learning":
        steps, values = run["curve"]["step"], run["curve"]["exact_accuracy"]
        return plots.Course(run["condition"], steps, [100 * value for value in values])
    found = {
        float(name.partition("@")[2]): value
        for name, value in run["readings"].items()
        if name.partition("@")[0] == kind and name.partition("@")[2].isdecimal()
    }
    return plots.Course(run["condition"], list(found), [None if it is None else 100 * it for it in found.values()])
