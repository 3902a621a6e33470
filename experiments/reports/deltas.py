"""The report of an analysis, rendered from records.jsonl alone: sentences, tables, figures, thresholds, command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.records import OUTCOMES, WeightsRecord
from loopgrad.experiments.reports import delta_figures
from loopgrad.experiments.reports.conditions import Condition, at_last, conditions, outcomes, settled
from loopgrad.experiments.reports.markdown import how_made, table
from loopgrad.experiments.reports.summary import Spread, percent, significant
from loopgrad.experiments.reports.words import caption, headline, sentence

LEGEND = """\
converged: the relative residual of a cycle is at most rtol (or the floor of rounding, if that is larger) and at most
ten rtol are left to go by its rate; judged at the ends of cycles, of all streams jointly, and by the map re-evaluated
in float64. Brackets: 95 % interval by Wilson's score, as if all samples were independent. Solved: the answer is right
at that depth. Residual: ||F(z) - z|| over the scale of the states, F one cycle of all streams, median (5-95 %) over
samples, mean over seeds. Training depth: the segments that training runs from the initial state; beyond it the
recursion is extrapolated."""


def render(folder: Path, console: Console) -> None:
    """Write report.md and the common figures beside records.jsonl, and print the verdicts.

    Raises:
        ConfigError: There are no records, or they are not those of an analysis.
    """
    try:
        found = records.read(folder / "records.jsonl", records.fields_of(WeightsRecord))
        every = conditions(found)
        lines = _markdown(found, every)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"{folder / 'records.jsonl'}: these are not records of an analysis: {error}") from error
    try:
        drawn = delta_figures.of_all(found, folder)
    except ImportError as error:
        console.print(f"No figures: {error}")
        drawn = []
    drawn += [path for record in found for path in record.get("figures", [])]
    lines += ["", "## Figures", ""]
    for path in drawn:
        lines += [f"![{Path(path).stem}]({path})", "", caption(Path(path).stem), ""]
    records.replace_text(folder / "report.md", "\n".join(lines) + "\n")
    shown = Table(box=SIMPLE_HEAD, padding=(0, 0))
    for title in ("weights", "exact %", "converged", "of solved", "of unsolved", "deeper"):
        shown.add_column(title, no_wrap=title == "weights", justify="left" if title == "weights" else "right")
    for condition in every:
        shares = [settled(condition, 0, outcome=outcome) for outcome in OUTCOMES]
        counts = [f"{it.count} of {it.total}" for it in (*shares, settled(condition, 1))]
        shown.add_row(condition.name, _exact(condition, 0), *counts)
    console.print(shown)
    if len(every) == 1:
        for stream in _streams(every[0]):
            console.print(sentence(every[0], stream))
    else:
        console.print(headline(every))
    console.print(f"Report, figures and records are in {folder}")


def _markdown(found: Sequence[WeightsRecord], every: Sequence[Condition]) -> list[str]:
    first = found[0]
    lines = ["# Do the latent deltas converge?", "", headline(every), ""]
    if len({record["group"] for record in found}) > 1:
        lines += ["## In short", "", *_short(every), ""]
    lines += ["## Verdicts", ""]
    for depth in (0, 1):
        lines += [*_verdicts(every, depth), ""]
    lines += [LEGEND, "", "## By stream", ""]
    for condition in every:
        lines += [f"**{condition.name}**", ""] + [f"- {sentence(condition, s)}" for s in _streams(condition)] + [""]
    lines += ["## Would other thresholds change the answer?", "", *_sweep(every), ""]
    if any("gaps" in record for record in found):
        lines += ["## Gradients by residual", "", *_by_residual(every), ""]
        lines += ["## Gradients beside residual and spectral radius", "", *_gaps(every), ""]
    if any("spectrum" in record for record in found):
        lines += ["## The map where the recursion ends", "", *_spectra(every), ""]
    thresholds = ", ".join(f"{name} {value}" for name, value in first["depths"][0]["thresholds"].items())
    lines += [*how_made(first), f"- thresholds: {thresholds}"]
    lines += [f"- {first['samples']} held-out samples of each of {len(found)} sets of weights"]
    return lines


def _short(every: Sequence[Condition]) -> list[str]:
    """Return a table of groups, their estimators and seeds pooled, at their first and last step."""
    rows = []
    for group in dict.fromkeys(record["group"] for condition in every for record in condition.records):
        mine = [condition for condition in every if condition.records[0]["group"] == group]
        steps = sorted({condition.step or 0 for condition in mine})
        for step in dict.fromkeys((steps[0], steps[-1])):
            pooled = [record for condition in mine if (condition.step or 0) == step for record in condition.records]
            both = Condition(group, step or None, tuple(pooled))
            cells = [settled(both, depth, outcome=o).text() for depth in (0, 1) for o in ("solved", "unsolved")]
            rows.append([both.name, _exact(both, 0), *cells, band(both, 0, "joint"), band(both, 1, "joint")])
    header = ["weights", "exact %", "converged of solved", "of unsolved", "deeper, of solved", "deeper, of unsolved"]
    return table([*header, "residual", "deeper"], rows)


def _verdicts(every: Sequence[Condition], depth: int) -> list[str]:
    rows = []
    for condition in every:
        others = {}
        for outcome, counts in outcomes(condition, depth).items():
            left = {label: n for label, n in counts.items() if label != "converged"}
            others[outcome] = ", ".join(f"{n} {label}" for label, n in left.items()) or "-"
        cells = [settled(condition, depth, outcome=outcome).text() for outcome in ("solved", "unsolved")]
        rows.append(
            [
                condition.name,
                _exact(condition, depth),
                cells[0],
                others["solved"],
                cells[1],
                others["unsolved"],
                band(condition, depth, "joint"),
            ]
        )
    cycles = sorted({record["depths"][depth]["cycles"] for c in every for record in c.records})
    name = "Training depth" if depth == 0 else "Extrapolated"
    header = ["weights", "exact %", "converged of solved", "other solved", "converged of unsolved", "other unsolved"]
    return [f"{name}, {' or '.join(map(str, cycles))} cycles.", "", *table([*header, "residual"], rows)]


def band(condition: Condition, depth: int, stream: str, outcome: str = "all", kind: str = "reevaluated") -> str:
    """Return a residual as "0.31 (0.12-0.55)", means over seeds of quantiles over samples."""
    found = []
    for record in condition.records:
        it = record["depths"][depth]["streams"][stream]
        values = (it[kind] or it["residual"]).get(outcome)
        if values is not None:
            found.append([np.inf if value is None else value for value in values])
    if not found:
        return "-"
    low, middle, high = np.mean(found, axis=0)
    return f"{middle:.2g} ({low:.2g}-{high:.2g})"


def _exact(condition: Condition, depth: int) -> str:
    shares = [sum(record["depths"][depth]["solved"]) / record["samples"] for record in condition.records]
    return Spread.of(shares).text(percent)


def _streams(condition: Condition) -> list[str]:
    return list(condition.records[0]["depths"][0]["streams"])


def _sweep(every: Sequence[Condition]) -> list[str]:
    rows = []
    for condition in every:
        for depth, name in enumerate(("training depth", "extrapolated")):
            streams = [record["depths"][depth]["streams"]["joint"]["sweep"] for record in condition.records]
            total = sum(record["samples"] for record in condition.records)
            shares = [
                f"{100 * sum(it[factor].get('converged', 0) for it in streams) / total:.1f}" for factor in streams[0]
            ]
            rows.append([condition.name, name, *shares])
    for depth, name in enumerate(("training depth", "extrapolated")):
        found = [record["depths"][depth]["streams"]["joint"]["sweep"] for c in at_last(every) for record in c.records]
        total = sum(record["samples"] for c in at_last(every) for record in c.records)
        shares = [f"{100 * sum(it[factor].get('converged', 0) for it in found) / total:.1f}" for factor in found[0]]
        rows.append(["all at their last step", name, *shares])
    factors = list(every[0].records[0]["depths"][0]["streams"]["joint"]["sweep"])
    header = ["weights", "depth", *(f"all thresholds x {factor}" for factor in factors)]
    return ["Converged, in % of all samples, all streams jointly.", "", *table(header, rows)]


def _by_residual(every: Sequence[Condition]) -> list[str]:
    """Pool the gradients of solved and of unsolved samples at the last step, by the residual where they are taken."""
    bands = {"below 1e-6": (0, 1e-6), "1e-6 to 1e-3": (1e-6, 1e-3), "from 1e-3": (1e-3, np.inf)}
    found = [
        gap
        for condition in at_last(every)
        for record in condition.records
        for gap in record.get("gaps", [])
        if gap["samples"] != "all" and None not in (gap["residual_q50"], gap["cosine"], gap["relative_error"])
    ]
    rows = []
    for estimator in dict.fromkeys(gap["estimator"] for gap in found):
        for name, (low, high) in bands.items():
            mine = [g for g in found if g["estimator"] == estimator and low <= g["residual_q50"] < high]
            if mine:
                cosines, errors = [gap["cosine"] for gap in mine], [gap["relative_error"] for gap in mine]
                rows.append([estimator, name, str(len(mine)), _span(cosines), _span(errors)])
    header = ["gradient", "median residual", "groups", "cosine", "rel. error"]
    text = (
        "Solved or unsolved samples of one set of weights are a group; last step; median (least-greatest) over groups."
    )
    return [text, "", *table(header, rows)]


def _gaps(every: Sequence[Condition]) -> list[str]:
    rows = []
    for condition in every:
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for record in condition.records:
            for gap in record.get("gaps", []):
                found.setdefault((gap["samples"], gap["estimator"]), []).append(gap)
        for (samples, estimator), group in found.items():
            keys = ("cosine", "relative_error", "norm_ratio", "residual_q50", "radius_q50")
            cells = [Spread.of([gap[key] for gap in group]).text(significant) for key in keys]
            rows.append([condition.name, samples, str(sum(gap["count"] for gap in group)), estimator, *cells])
    header = ["weights", "samples", "n", "gradient", "cosine", "rel. error", "norm ratio", "residual", "radius"]
    text = (
        "Gradients of the last segment of the training depth beside float64 BPTT of that segment; mean (least-greatest)"
    )
    return [
        f"{text} over seeds. Residual and radius: medians at the point where the gradient is taken.",
        "",
        *table(header, rows),
    ]


def _spectra(every: Sequence[Condition]) -> list[str]:
    rows = []
    for condition in every:
        cells = []
        for wanted in (True, False):
            found = [_where(record, "spectrum", "radius", wanted) for record in condition.records]
            cells.append(_span([value for values in found for value in values]))
        exponents = [v for r in condition.records for w in (True, False) for v in _where(r, "exponents", "mean", w)]
        searches = [record["search"] for record in condition.records if "search" in record]
        hits = [hit for it in searches for hit in it["found"]]
        ends = [count == 1 for it in searches for count in it["clusters"]]
        rows.append(
            [
                condition.name,
                *cells,
                _span(exponents) + (f", {sum(v > 0 for v in exponents)} of {len(exponents)} > 0" if exponents else ""),
                f"{sum(hits)} of {len(hits)}" if hits else "-",
                f"{sum(ends)} of {len(ends)}" if ends else "-",
            ]
        )
    header = [
        "weights",
        "radius, solved",
        "radius, unsolved",
        "exponent",
        "fixed point near",
        "one end from all starts",
    ]
    text = (
        "Spectral radius of a cycle's Jacobian at training depth; largest Lyapunov exponent (nats per cycle) of "
        "samples that do not settle; samples near whose end a fixed point was found; samples whose four starts "
        "(learned, zero, random, another's end) led to one end. Median (least-greatest) over samples."
    )
    return [text, "", *table(header, rows)]


def _where(record: WeightsRecord, part: str, key: str, solved: bool) -> list[float]:
    found = record.get(part)
    return [v for v, s in zip(found[key], found["solved"], strict=True) if s == solved] if found else []


def _span(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{np.median(values):.2g} ({min(values):.2g}-{max(values):.2g})"
