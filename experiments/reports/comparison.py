"""The report of a comparison: table, sentence, figures and provenance, rendered from records.jsonl alone."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from loopgrad.analysis import plots
from loopgrad.experiments import records
from loopgrad.experiments.records import LEVELS, RunRecord
from loopgrad.experiments.records.kinds import Where
from loopgrad.experiments.reports import comparison_page, differences, groups, summary
from loopgrad.experiments.reports.html import document
from loopgrad.experiments.reports.inert import figure, inert, markdown, shown
from loopgrad.experiments.reports.tables import console_table, how_made, table
from loopgrad.experiments.reports.whole import making, rendered, say, write

LEGEND = """\
exact: held-out samples solved, by the task's rules; tokens: scored tokens right; loss: held-out cross entropy.
time: forward and backward of one training step beside BPTT's, median of rounds timed in turn.
saved: bytes kept for backward when the forward pass ends; peak: most bytes alive at once in the two passes, gradients
included; evaluations, vjps, FLOPs: of one training step, recomputation included.
cosine, rel. error: gradient against float64 BPTT on the same batch and carry, at the run's own final weights.
residual: ||F(z) - z|| over the scale of the states, F the joint map of one cycle, at the point where the gradient
is taken, in the dtype of training; median over samples. trusted: share of training samples whose implicit
gradient passed the gate, mean over all steps. Values are means over seeds, least and greatest in brackets."""


PER_UPDATE = """\
Each update reads a token of its own: a residual says how far one token moves the states, not whether they settle."""

OTHER_ANSWERS = """\
match: held-out samples equal to their label in every scored token; exact counts other right answers, too."""

MANY = 40  # estimators that a figure does not tell apart any more


def render(folder: Path, console: Console) -> None:
    """Write report.md, report.html and the figures beside records.jsonl, all or none, and print the table.

    Raises:
        ConfigError: There are no records, or they are not those of a comparison.
    """
    path = folder / "records.jsonl"
    found = records.read(path, RunRecord)
    with making(path):
        figures, missing = _figures(inert(found, figure))
        page = _markdown(inert(found, markdown), found[0])
        page += "".join(f"\n![{Path(name).stem}]({name})\n" for name in figures if name.endswith(".png"))
        printed = inert(found, shown)
        notes = [OTHER_ANSWERS] * summary.other_answers(found) + [PER_UPDATE] * _per_update(found)
        single = document(comparison_page.page(printed, LEGEND, notes))
        # two narrow tables read better than one that a terminal has to fold; report.md has one, with every spread
        every = summary.columns_of(printed)
        told = [summary.table(printed, columns, always_spread=False) for columns in (every[:6], every[6:])]
        told += [by_group] if (by_group := groups.table(printed))[0] else []
        sentence = summary.reading(printed)
    write(folder, page, figures, single)
    if missing:
        say(console, f"No figures: {missing}.")
    for header, rows in told:
        console.print(console_table(header, rows, header[:1]))
    say(console, sentence)
    say(console, f"Report, figures and records are in {folder}")


def _markdown(found: Sequence[RunRecord], made: RunRecord) -> str:
    first = found[0]
    header, rows = summary.table(found)
    seeds = ", ".join(str(seed) for seed in sorted({record["seed"] for record in found}))
    return "\n".join(
        [
            f"# {first['model']} on {first['task']}",
            *("", summary.reading(found), "", *table(header, rows), "", LEGEND, ""),
            *([OTHER_ANSWERS, ""] if summary.other_answers(found) else []),
            *_differences(found),
            *_by_group(found),
            *("## Residuals", "", *([PER_UPDATE, ""] if _per_update(found) else []), *_residuals(found), ""),
            *how_made(made),
            *_sizes(first),
            f"- seeds: {seeds}; {first['train_steps']} steps; probes on {first['probe']['samples']} held-out samples, "
            f"segment {first['probe']['segment']}",
            "",
        ]
    )


def _sizes(record: RunRecord) -> list[str]:
    """Return what the model's size is, where the record tells."""
    if "parameters" not in record:
        return []
    frozen = record.get("frozen_parameters")
    beside = f", beside {frozen:,} of a frozen encoder" if frozen is not None else ""
    return [f"- parameters: {record['parameters']:,} trained{beside}"]


def _differences(found: Sequence[RunRecord]) -> list[str]:
    header, rows = comparison_page.apart(found)
    return [f"## {differences.TITLE}", "", *table(header, rows), "", differences.LEGEND, ""] if rows else []


def _by_group(found: Sequence[RunRecord]) -> list[str]:
    header, rows = groups.table(found)
    return ["## By group", "", groups.LEGEND, "", *table(header, rows), ""] if header else []


def _per_update(found: Sequence[RunRecord]) -> bool:
    return bool(found[0]["probe"].get("input_per_update"))


def _residuals(found: Sequence[RunRecord]) -> list[str]:
    streams = [name for name in found[0]["residuals"] if name not in Where.__annotations__]
    rows = [
        [name, stream, *(_quantiles(group, stream, kind) for kind in ("update_relative", "map_relative"))]
        for name, group in summary.by_estimator(found).items()
        for stream in streams
    ]
    header = ["estimator", "stream", "last update", "cycle map at the gradient"]
    return ["Relative residuals, medians over samples (5-95 %), mean over seeds.", "", *table(header, rows)]


def _quantiles(group: list[RunRecord], stream: str, kind: str) -> str:
    bands = [summary.spread(group, "residuals", stream, kind, i).mean for i in range(len(LEVELS))]
    return "-" if all(map(math.isnan, bands)) else summary.band(*bands)


def _figures(found: Sequence[RunRecord]) -> tuple[dict[str, bytes], str]:
    """Return the files of the figures by name, or why there are none."""
    if (count := len(summary.by_estimator(found))) > MANY:
        return {}, f"{count} estimators cannot be told apart"
    try:
        return rendered(draw(found)), ""
    except ImportError:
        return {}, "matplotlib is missing (pip install 'loopgrad[plots]')"


def draw(found: Sequence[RunRecord]) -> Iterator[tuple[str, plots.Drawn]]:
    """Draw accuracy and cost, the residuals, and accuracy by group; yield each with its name.

    Raises:
        ImportError: matplotlib is not installed.
    """
    case = case_of(found)
    yield "comparison", plots.accuracy_and_cost(case.runs, case.name, case.accuracy)
    updates = "update in the second segment" if found[0]["probe"]["segment"] == 2 else "update"
    yield "residuals", plots.residuals_by_estimator(case.runs, "token" if _per_update(found) else updates)
    if (by_group := groups.drawn(found, [record["estimator"] for record in found])) is not None:
        yield "groups", by_group


def case_of(found: Sequence[RunRecord]) -> plots.Case:
    """Return what a figure shows of the records of a comparison."""
    key = summary.judged(found)[0]
    if any(key not in record["curve"] for record in found):  # of an earlier version
        key = "exact_accuracy"
    count = len({record["seed"] for record in found})
    seeds = f"{count} seeds: mean, least and greatest" if count > 1 else "one seed"
    of = "tokens right" if key == "token_accuracy" else "samples exact"
    name = f"{found[0]['model']} on {found[0]['task']}, {seeds}"
    return plots.Case(name, [_run(record, key) for record in found], f"held-out {of} (%)")


def _run(record: RunRecord, key: str) -> plots.Run:
    return plots.Run(
        estimator=record["estimator"],
        steps=record["curve"]["step"],
        accuracies=[100 * value for value in record["curve"][key]],
        accuracy=100 * (record[key] or 0),
        bytes=record["saved_bytes"] or 0,
        time_ratio=record["time_ratio_to_bptt"],
        cosine=record["gradient_cosine"],
        residuals=record["residual_curve"],
    )
