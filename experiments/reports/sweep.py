"""The joint report of a sweep: what its jobs differ in and what each came to, rendered from their records alone.

Each comparison of several estimators has a sentence and a row of panels; of other runs a sentence says which did best.
"""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from loopgrad.analysis import plots
from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.records import RunRecord
from loopgrad.experiments.reports import differences, groups, shortcuts, summary, sweep_page
from loopgrad.experiments.reports.comparison import MANY, case_of
from loopgrad.experiments.reports.html import Page, document
from loopgrad.experiments.reports.inert import figure, inert, markdown, shown
from loopgrad.experiments.reports.sweep_rows import Row, rows_of
from loopgrad.experiments.reports.tables import console_table, how_made, table
from loopgrad.experiments.reports.whole import making, rendered, say, write

SHOWN = ("exact %", "time / BPTT", "saved MiB", "cosine", "tokens %", "loss", "residual")
COLUMNS = [column for column in summary.COLUMNS if column.title in SHOWN]
# numbers of a record, in the table of all runs
VALUES = (
    *("train_steps", "exact_accuracy", "match_accuracy", "token_accuracy", "loss", "time_ratio_to_bptt"),
    *(
        "parameters",
        "seconds_per_step",
        "saved_bytes",
        "peak_bytes",
        "cell_evaluations",
        "vjps",
        "flops",
        "gradient_cosine",
    ),
    "gradient_relative_error",
)
LONGEST = 60  # characters of a value that is shown
MOST_CASES = 6  # comparisons that a page holds, a row of panels each
CONFIG = "config.json of its folder holds the whole configuration of a job. sweep.csv has a line for each run."
RESIDUAL = """\
residual: how far one more cycle moves the states, over their scale, where the gradient is taken (median over samples);
where each update reads a token of its own, how far that token moves them, not whether they settle."""


def jobs_of(folder: Path) -> dict[int, list[RunRecord]]:
    """Return the records of the jobs of a sweep by their numbers, the names of their folders; none where one is left.

    Raises:
        ConfigError: Records of one are not those of a comparison or a run.
    """
    numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())
    paths = {number: folder / str(number) / "records.jsonl" for number in numbers}
    return {number: list(records.read(path, RunRecord)) if path.exists() else [] for number, path in paths.items()}


def render(folder: Path, console: Console) -> list[int]:
    """Write report.md, report.html, sweep.csv and a figure into a sweep's folder; return the jobs that have not ended.

    Raises:
        ConfigError: No job has ended, or no report can be made of their records.
    """
    jobs = jobs_of(folder)
    missing = [number for number, found in jobs.items() if not found]
    if len(missing) == len(jobs):
        raise ConfigError(f"{folder}: none of the {len(jobs)} jobs of this sweep has ended: there is nothing to report")
    with making(folder):
        keys, rows = rows_of(jobs)
        drawn, reason = _figures(keys, rows)
        page = _page(keys, rows, missing)
        page += "".join(f"\n![sweep]({name})\n" for name in drawn if name.endswith(".png"))
        judge = summary.judged([record for row in rows for record in row.records])[0]
        short = [
            column for column in COLUMNS if column.path[0] not in {"exact_accuracy", "token_accuracy", "loss"} - {judge}
        ]
        header, lines = _table(keys, rows, shown, short, spreads=False)
        sentences = _sentences(keys, rows, shown)
        single = document(_single(keys, rows, missing))
    write(folder, page, {**drawn, "sweep.csv": _csv(keys, rows).encode()}, single)
    if reason:
        say(console, f"No figure: {reason}.")
    console.print(console_table(header, lines, header[: len(keys) + 2]))
    for sentence in sentences:
        say(console, sentence)
    say(console, f"The joint report of {len(jobs) - len(missing)} jobs is in {folder}")
    return missing


def _cases(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of each setting, if every job compares several estimators and a page holds all settings."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.values), []).append(row)
    estimators = Counter(job for row in rows for job in set(row.jobs))
    return list(found.values()) if len(found) <= MOST_CASES and min(estimators.values()) > 1 else []


def _together(rows: Sequence[Row], how: Any) -> list[RunRecord]:
    return [inert(record, how) for row in rows for record in row.records]


def _settings(keys: Sequence[str], row: Row, how: Any) -> str:
    return ", ".join(f"{how(name)}={_cut(value, how)}" for name, value in zip(keys, row.values, strict=True) if value)


def _cut(value: str, how: Any) -> str:
    return how(value if len(value) <= LONGEST else f"{value[: LONGEST - 3]}...")


def _table(
    keys: Sequence[str], rows: Sequence[Row], how: Any, columns: Sequence[summary.Column], spreads: bool = True
) -> tuple[list[str], list[list[str]]]:
    numbers = [", ".join(map(str, dict.fromkeys(row.jobs))) for row in rows]
    lines = [
        [
            number,
            *(_cut(value, how) for value in row.values),
            how(row.estimator),
            *(column.text(row.records, spreads) for column in columns),
        ]
        for number, row in zip(numbers, rows, strict=True)
    ]
    return ["job", *map(how, keys), "estimator", *(column.title for column in columns)], lines


def _sentences(keys: Sequence[str], rows: Sequence[Row], how: Any) -> list[str]:
    told = [shortcuts.sentence(_together(case, how), _settings(keys, case[0], how)) for case in _cases(rows)]
    return told or [_best(keys, rows, how)]


def _best(keys: Sequence[str], rows: Sequence[Row], how: Any) -> str:
    """Return one sentence: which row did best, and by how much it differs from the next."""
    key, words = summary.judged([record for row in rows for record in row.records])
    scores = [summary.spread(row.records, key) for row in rows]
    known = [i for i, score in enumerate(scores) if score.mean == score.mean]
    if not known:
        return "No run has a score."
    best = max(known, key=lambda i: scores[i].mean)
    row, seeds = rows[best], len({record["seed"] for record in rows[best].records})
    settings = _settings(keys, row, how)
    told = f"{how(row.estimator)}{' with ' * bool(settings)}{settings}"
    scale = f"mean of {seeds} seeds" if seeds > 1 else "one seed, so without a spread"
    equal = sum(scores[i].mean == scores[best].mean for i in known) - 1
    also = f"; {equal} other{'s are' if equal > 1 else ' is'} equal to it" if equal else ""
    return f"Best of {len(rows)}: {told} {words.format(f'{100 * scores[best].mean:.1f} %')} ({scale}){also}."


def _page(keys: Sequence[str], rows: Sequence[Row], missing: Sequence[int]) -> str:
    header, lines = _table(keys, rows, markdown, COLUMNS)
    left = [line for note in _left(missing) for line in (note, "")]
    sentences = [line for sentence in _sentences(keys, rows, markdown) for line in (sentence, "")]
    return "\n".join(
        [
            f"# A sweep of {len({number for row in rows for number in row.jobs})} jobs",
            *("", *sentences, *left, *table(header, lines)),
            *("", "Values are means over seeds, least and greatest in brackets. " + CONFIG, "", RESIDUAL, ""),
            *_differences(keys, rows),
            *_by_group(keys, rows),
            *how_made(rows[0].records[0]),
            "",
        ]
    )


def _differences(keys: Sequence[str], rows: Sequence[Row]) -> list[str]:
    header, lines = _apart(keys, rows, markdown)
    return [f"## {differences.TITLE}", "", *table(header, lines), "", differences.LEGEND, ""] if lines else []


def _apart(keys: Sequence[str], rows: Sequence[Row], how: Any) -> tuple[list[str], list[list[str]]]:
    head, names = _table(keys, rows, how, [])
    return differences.table(head, names, [row.records for row in rows])


def _by_group(keys: Sequence[str], rows: Sequence[Row]) -> list[str]:
    every = [record for row in rows for record in row.records]
    if not (names := groups.named(every)):
        return []
    header, lines = _table(keys, rows, markdown, groups.SIZES, spreads=False)
    header += map(markdown, groups.header(every, names))
    lines = [[*line, *groups.cells(row.records, names)] for line, row in zip(lines, rows, strict=True)]
    return ["## By group", "", groups.LEGEND, "", *table(header, lines), ""]


def _left(missing: Sequence[int]) -> list[str]:
    return [f"Not ended, and so not in the table: jobs {', '.join(map(str, missing))}."] if missing else []


def _single(keys: Sequence[str], rows: Sequence[Row], missing: Sequence[int]) -> Page:
    """Return the page of HTML: of each comparison its curves, or those of all rows together."""
    curves = []
    for case in _cases(rows) or [rows]:
        own = case is rows
        names = [f"{shown(row.estimator)} {_settings(keys, row, shown) if own else ''}".strip() for row in case]
        curves.append({name: _together([row], shown) for name, row in zip(names, case, strict=True)})
    jobs = len({number for row in rows for number in row.jobs})
    tables = _table(keys, rows, shown, COLUMNS), _apart(keys, rows, shown)
    return sweep_page.page(*tables, _sentences(keys, rows, shown), curves, [*_left(missing), CONFIG, RESIDUAL], jobs)


def _figures(keys: Sequence[str], rows: Sequence[Row]) -> tuple[dict[str, bytes], str]:
    """Return the files of the figure by name, or why there is none."""
    if len(rows) > MANY:
        return {}, f"{len(rows)} rows cannot be told apart"
    try:
        by_group = groups.drawn([it for row in rows for it in row.records], _labels(keys, rows))
        return rendered([("sweep", _draw(keys, rows)), *([("groups", by_group)] if by_group else [])]), ""
    except ImportError:
        return {}, "matplotlib is missing (pip install 'loopgrad[plots]')"


def _draw(keys: Sequence[str], rows: Sequence[Row]) -> plots.Drawn:
    if cases := _cases(rows):
        drawn = [(case_of(_together(case, figure)), _settings(keys, case[0], figure)) for case in cases]
        return plots.accuracy_and_cost_by_case(
            [case._replace(name=": ".join(filter(None, (settings, case.name)))) for case, settings in drawn]
        )
    every = [record for row in rows for record in row.records]
    case = case_of([{**it, "estimator": label} for it, label in zip(every, _labels(keys, rows), strict=True)])
    return plots.accuracy_and_cost(case.runs, "", case.accuracy)


def _labels(keys: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Return for the records of all rows, one after the other, what tells their row apart."""
    short = [name.rsplit(".", 1)[-1] for name in keys]
    short = [name if short.count(name) == 1 else whole for name, whole in zip(short, keys, strict=True)]
    labels = [f"{row.estimator} {_settings(short, row, str)}".strip() for row in rows]
    return [figure(label) for row, label in zip(rows, labels, strict=True) for _ in row.records]


def _csv(keys: Sequence[str], rows: Sequence[Row]) -> str:
    """Return a table with a line per run; no text begins as a spreadsheet's formulas do."""
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(["job", "seed", *map(_cell, keys), "estimator", *VALUES, "residual"])
    for row in rows:
        for job, record in zip(row.jobs, row.records, strict=True):
            residual = summary.spread([record], *summary.RESIDUAL).mean
            numbers = [*(record.get(name) for name in VALUES), None if residual != residual else residual]
            lines.writerow([job, record["seed"], *map(_cell, row.values), _cell(row.estimator), *numbers])
    return file.getvalue()


def _cell(text: str) -> str:
    text = shown(text)
    return f"'{text}" if text[:1] in "=+-@" and text[:1] and not text[1:2].isdigit() else text
