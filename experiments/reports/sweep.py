"""The joint report of a sweep: what its jobs differ in and what each came to, rendered from their records alone."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from loopgrad.analysis import plots
from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.records import RunRecord
from loopgrad.experiments.reports import summary
from loopgrad.experiments.reports.comparison import MANY, run_of
from loopgrad.experiments.reports.inert import figure, markdown, shown
from loopgrad.experiments.reports.tables import console_table, how_made, table
from loopgrad.experiments.reports.whole import making, rendered, say, write

SHOWN = ("exact_accuracy", "token_accuracy", "loss", "time_ratio_to_bptt", "saved_bytes", "gradient_cosine")
COLUMNS = [column for column in summary.COLUMNS if column.path[0] in SHOWN]
# numbers of a record, in the table of all runs
VALUES = (
    *("train_steps", "exact_accuracy", "match_accuracy", "token_accuracy", "loss", "time_ratio_to_bptt"),
    *("seconds_per_step", "saved_bytes", "peak_bytes", "cell_evaluations", "vjps", "flops", "gradient_cosine"),
    "gradient_relative_error",
)
LONGEST = 60  # characters of a value that is shown


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seeds alone: of each its job, and what all have for each key that varies."""

    jobs: list[int]
    values: list[str]
    estimator: str
    records: list[RunRecord]


def jobs_of(folder: Path) -> dict[int, list[RunRecord]]:
    """Return the records of the jobs of a sweep by their numbers, the names of their folders; none where one is left.

    Raises:
        ConfigError: Records of one are not those of a comparison or a run.
    """
    numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())
    paths = {number: folder / str(number) / "records.jsonl" for number in numbers}
    return {number: list(records.read(path, RunRecord)) if path.exists() else [] for number, path in paths.items()}


def render(folder: Path, console: Console) -> list[int]:
    """Write report.md, sweep.csv and a figure into the folder of a sweep; return the jobs that have not ended.

    Raises:
        ConfigError: No job has ended, or no report can be made of their records.
    """
    jobs = jobs_of(folder)
    missing = [number for number, found in jobs.items() if not found]
    if len(missing) == len(jobs):
        raise ConfigError(f"{folder}: none of the {len(jobs)} jobs of this sweep has ended: there is nothing to report")
    with making(folder):
        keys, rows = _rows(jobs)
        drawn, reason = _figures(keys, rows)
        page = _page(keys, rows, missing)
        page += "".join(f"\n![sweep]({name})\n" for name in drawn if name.endswith(".png"))
        header, lines = _table(keys, rows, shown, spreads=False)
        sentence = _best(keys, rows, shown)
    write(folder, page, {**drawn, "sweep.csv": _csv(keys, rows).encode()})
    if reason:
        say(console, f"No figure: {reason}.")
    console.print(console_table(header, lines, header[: len(keys) + 2]))
    say(console, sentence)
    say(console, f"The joint report of {len(jobs) - len(missing)} jobs is in {folder}")
    return missing


def _rows(jobs: dict[int, list[RunRecord]]) -> tuple[list[str], list[Row]]:
    """Return the keys that vary, and the runs of all jobs, those together that differ in their seeds alone."""
    told = [(number, record, _told(record)) for number, found in jobs.items() for record in found]
    shared: dict[tuple[str, str], set[str]] = {}
    for _, _, values in told:
        for key, (of, value) in values.items():
            shared.setdefault((key, of), set()).add(value)
    varied = list(dict.fromkeys(key for (key, _), values in shared.items() if len(values) > 1))
    rows: dict[tuple[str, ...], Row] = {}
    for number, record, values in told:
        own = [values.get(key, ("", ""))[1] for key in varied]
        row = rows.setdefault((*own, record["estimator"]), Row([], own, record["estimator"], []))
        row.records.append(record)
        row.jobs.append(number)
    return varied, list(rows.values())


def _told(record: RunRecord) -> dict[str, tuple[str, str]]:
    """Return the configuration of a run but its seed, flat: for each key of what it is a part, and its value.

    Values are compared among parts of the same name: that a sorting task has no size tells nothing new.
    """
    config, names = record.get("config", {}), {"task": record["task"], "model": record["model"]}
    found = {name: ("", value) for name, value in names.items()}
    for group in ("task", "model", "trainer"):
        for key, value in _flat(config.get(group), group):
            found[key] = names.get(group, ""), value
    for key, value in _flat(config.get("estimator"), f"estimator.{record['estimator']}"):
        found[key] = record["estimator"], value
    return found


def _flat(values: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _flat(value, f"{key}.{name}")
    elif values is not None:
        text = str(values)
        yield key, text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _table(
    keys: Sequence[str], rows: Sequence[Row], how: Any, spreads: bool = True
) -> tuple[list[str], list[list[str]]]:
    numbers = [", ".join(map(str, dict.fromkeys(row.jobs))) for row in rows]
    lines = [
        [number, *map(how, row.values), how(row.estimator), *(column.text(row.records, spreads) for column in COLUMNS)]
        for number, row in zip(numbers, rows, strict=True)
    ]
    return ["job", *map(how, keys), "estimator", *(column.title for column in COLUMNS)], lines


def _best(keys: Sequence[str], rows: Sequence[Row], how: Any) -> str:
    """Return one sentence: which row did best, and by how much it differs from the next."""
    key, words = summary.judged([record for row in rows for record in row.records])
    scores = [summary.spread(row.records, key) for row in rows]
    known = [i for i, score in enumerate(scores) if score.mean == score.mean]
    if not known:
        return "No run has a score."
    best = max(known, key=lambda i: scores[i].mean)
    row, seeds = rows[best], len({record["seed"] for record in rows[best].records})
    pairs = [f"{how(name)}={how(value)}" for name, value in zip(keys, row.values, strict=True) if value]
    told = f"{how(row.estimator)}{' with ' * bool(pairs)}{', '.join(pairs)}"
    scale = f"mean of {seeds} seeds" if seeds > 1 else "one seed, so without a spread"
    equal = sum(scores[i].mean == scores[best].mean for i in known) - 1
    also = f"; {equal} other{'s are' if equal > 1 else ' is'} equal to it" if equal else ""
    return f"Best of {len(rows)}: {told} {words.format(f'{100 * scores[best].mean:.1f} %')} ({scale}){also}."


def _page(keys: Sequence[str], rows: Sequence[Row], missing: Sequence[int]) -> str:
    header, lines = _table(keys, rows, markdown)
    left = [f"Not ended, and so not in the table: jobs {', '.join(map(str, missing))}.", ""] if missing else []
    config = "config.json of its folder holds the whole configuration of a job. sweep.csv has a line for each run."
    return "\n".join(
        [
            f"# A sweep of {len({number for row in rows for number in row.jobs})} jobs",
            *("", _best(keys, rows, markdown), "", *left, *table(header, lines)),
            *("", "Values are means over seeds, least and greatest in brackets. " + config, ""),
            *how_made(rows[0].records[0]),
            "",
        ]
    )


def _figures(keys: Sequence[str], rows: Sequence[Row]) -> tuple[dict[str, bytes], str]:
    """Return the files of the figure by name, or why there is none."""
    if len(rows) > MANY:
        return {}, f"{len(rows)} rows cannot be told apart"
    key = summary.judged([record for row in rows for record in row.records])[0]
    if any(key not in record["curve"] for row in rows for record in row.records):
        key = "exact_accuracy"
    short = [name.rsplit(".", 1)[-1] for name in keys]
    short = [name if short.count(name) == 1 else whole for name, whole in zip(short, keys, strict=True)]
    runs = []
    for row in rows:
        told = ", ".join(f"{name}={value}" for name, value in zip(short, row.values, strict=True) if value)
        label = figure(f"{row.estimator} {told}".strip())
        runs += [run_of({**record, "estimator": label}, key) for record in row.records]
    of = "tokens right" if key == "token_accuracy" else "samples exact"
    try:
        drawn = plots.accuracy_and_cost(runs, "", f"held-out {of} (%)")
        return rendered([("sweep", drawn)]), ""
    except ImportError:
        return {}, "matplotlib is missing (pip install 'loopgrad[plots]')"


def _csv(keys: Sequence[str], rows: Sequence[Row]) -> str:
    """Return a table with a line per run; no text begins as a spreadsheet's formulas do."""
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(["job", "seed", *map(_cell, keys), "estimator", *VALUES])
    for row in rows:
        for job, record in zip(row.jobs, row.records, strict=True):
            numbers = [record.get(name) for name in VALUES]
            lines.writerow([job, record["seed"], *map(_cell, row.values), _cell(row.estimator), *numbers])
    return file.getvalue()


def _cell(text: str) -> str:
    text = shown(text)
    return f"'{text}" if text[:1] in "=+-@" and text[:1] and not text[1:2].isdigit() else text
