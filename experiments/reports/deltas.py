"""The report of an analysis, rendered from records.jsonl alone: sentences, tables, figures, thresholds, command."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from loopgrad.experiments import records
from loopgrad.experiments.records import OUTCOMES, WeightsRecord
from loopgrad.experiments.records.kinds import Gap
from loopgrad.experiments.reports import delta_figures, deltas_page
from loopgrad.experiments.reports.conditions import (
    Condition,
    at_last,
    check_together,
    conditions,
    gaps_by_outcome,
    outcomes,
    settled,
)
from loopgrad.experiments.reports.html import document
from loopgrad.experiments.reports.inert import figure, inert, link, markdown, shown
from loopgrad.experiments.reports.positions import by_position
from loopgrad.experiments.reports.summary import Spread, band, percent, significant
from loopgrad.experiments.reports.tables import console_table, how_made, table
from loopgrad.experiments.reports.whole import making, rendered, say, write
from loopgrad.experiments.reports.words import caption, headline, residual, sentence

LEGEND = """\
converged: the relative residual of a cycle is at most rtol (or the floor of rounding, if that is larger) and at most
ten rtol are left to go by its rate; judged at the ends of cycles, of all streams jointly, and by the map re-evaluated
in float64. Brackets: 95 % interval by Wilson's score, as if all samples were independent. Solved: the answer is right
at that depth. Residual: ||F(z) - z|| over the scale of the states, F one cycle of all streams, median (5-95 %) over
samples, mean over seeds. Training depth: the segments that training runs from the initial state; beyond it the
recursion is extrapolated."""


def render(folder: Path, console: Console) -> None:
    """Write report.md, report.html and the common figures beside records.jsonl, all or none, and print the verdicts.

    Raises:
        ConfigError: There are no records, or they are not those of an analysis.
    """
    path = folder / "records.jsonl"
    found = records.read(path, WeightsRecord)
    with making(path):
        check_together(found)
        figures, missing = _figures(inert(found, figure))
        shown_here = [name for name in figures if name.endswith(".png")]
        shown_here += [name for record in found for name in record.get("figures", [])]
        lines = [*_markdown(inert(found, markdown), found[0]), "", "## Figures", ""]
        for name in shown_here:
            stem = Path(name).stem
            lines += [f"![{markdown(stem)}]({link(name)})", "", caption(stem), ""]
        printed = inert(found, shown)
        single = document(deltas_page.page(printed, LEGEND, _thresholds(printed)))
        every = conditions(printed)
        told = console_table(*_rows(every))
        words = [sentence(every[0], s) for s in _streams(every[0])] if len(every) == 1 else [headline(every)]
    write(folder, "\n".join(lines) + "\n", figures, single)
    if missing:
        say(console, f"No figures: {missing}")
    console.print(told)
    for line in words:
        say(console, line)
    say(console, f"Report, figures and records are in {folder}")


def _figures(found: Sequence[WeightsRecord]) -> tuple[dict[str, bytes], str]:
    """Return the files of the common figures by name, or why there are none."""
    try:
        return rendered(delta_figures.of_all(found)), ""
    except ImportError as error:
        return {}, str(error)


def _rows(every: Sequence[Condition]) -> tuple[list[str], list[list[str]], list[str]]:
    """Return the header, the rows and the names that must not be folded of the table on the console."""
    rows = []
    for condition in every:
        shares = [settled(condition, 0, outcome=outcome) for outcome in OUTCOMES]
        counts = [f"{it.count} of {it.total}" for it in (*shares, settled(condition, 1))]
        rows.append([condition.name, _exact(condition, 0), *counts])
    return ["weights", "exact %", "converged", "of solved", "of unsolved", "deeper"], rows, ["weights"]


def _markdown(found: Sequence[WeightsRecord], made: WeightsRecord) -> list[str]:
    first, every = found[0], conditions(found)
    lines = ["# Do the latent deltas converge?", "", headline(every), ""]
    if len({record["group"] for record in found}) > 1:
        lines += ["## In short", "", *_short(every), ""]
    lines += ["## Verdicts", ""]
    for depth in (0, 1):
        lines += [*_verdicts(every, depth), ""]
    lines += [LEGEND, "", "## By stream", ""]
    for condition in every:
        lines += [f"**{condition.name}**", ""] + [f"- {sentence(condition, s)}" for s in _streams(condition)] + [""]
    lines += by_position(every)
    lines += ["## Would other thresholds change the answer?", "", *_sweep(every), ""]
    if any("gaps" in record for record in found):
        lines += ["## Gradients by residual", "", *_by_residual(every), ""]
        lines += ["## Gradients beside residual and spectral radius", "", *_gaps(every), ""]
    if any("spectrum" in record for record in found):
        lines += ["## The map where the recursion ends", "", *_spectra(every), ""]
    samples = f"- {first['samples']} held-out samples of each of {len(found)} sets of weights"
    return [*lines, *how_made(made), f"- thresholds: {_thresholds(found)}", samples]


def _thresholds(found: Sequence[WeightsRecord]) -> str:
    return ", ".join(f"{name} {value}" for name, value in found[0]["depths"][0]["thresholds"].items())


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
            rows.append([both.name, _exact(both, 0), *cells, residual(both, 0, "joint"), residual(both, 1, "joint")])
    header = ["weights", "exact %", "converged of solved", "of unsolved", "deeper, of solved", "deeper, of unsolved"]
    return table([*header, "residual", "deeper"], rows)


def _verdicts(every: Sequence[Condition], depth: int) -> list[str]:
    rows = []
    for condition in every:
        cells = [condition.name, _exact(condition, depth)]
        for outcome, counts in outcomes(condition, depth).items():
            others = [f"{n} {label}" for label, n in counts.items() if label != "converged"]
            cells += [settled(condition, depth, outcome=outcome).text(), ", ".join(others) or "-"]
        rows.append([*cells, residual(condition, depth, "joint")])
    cycles = sorted({record["depths"][depth]["cycles"] for c in every for record in c.records})
    name = "Training depth" if depth == 0 else "Extrapolated"
    header = ["weights", "exact %", "converged of solved", "other solved", "converged of unsolved", "other unsolved"]
    return [f"{name}, {' or '.join(map(str, cycles))} cycles.", "", *table([*header, "residual"], rows)]


def _exact(condition: Condition, depth: int) -> str:
    shares = [sum(record["depths"][depth]["solved"]) / record["samples"] for record in condition.records]
    return Spread.of(shares).text(percent)


def _streams(condition: Condition) -> list[str]:
    return list(condition.records[0]["depths"][0]["streams"])


def _sweep(every: Sequence[Condition]) -> list[str]:
    rows = []
    pooled = Condition("all at their last step", None, tuple(r for c in at_last(every) for r in c.records))
    for condition in (*every, pooled):
        for depth, name in enumerate(("training depth", "extrapolated")):
            streams = [record["depths"][depth]["streams"]["joint"]["sweep"] for record in condition.records]
            total = sum(record["samples"] for record in condition.records)
            shares = [
                f"{100 * sum(it[factor].get('converged', 0) for it in streams) / total:.1f}" for factor in streams[0]
            ]
            rows.append([condition.name, name, *shares])
    factors = list(every[0].records[0]["depths"][0]["streams"]["joint"]["sweep"])
    header = ["weights", "depth", *(f"all thresholds x {factor}" for factor in factors)]
    return ["Converged, in % of all samples, all streams jointly.", "", *table(header, rows)]


def _by_residual(every: Sequence[Condition]) -> list[str]:
    """Pool the gradients of solved and of unsolved samples at the last step, by the residual where they are taken."""
    bands = {"below 1e-6": (0, 1e-6), "1e-6 to 1e-3": (1e-6, 1e-3), "from 1e-3": (1e-3, np.inf)}
    found = [gap for condition in at_last(every) for record in condition.records for gap in gaps_by_outcome(record)]
    rows = []
    for estimator in dict.fromkeys(gap["estimator"] for gap in found):
        for name, (low, high) in bands.items():
            known = (g for g in found if g["estimator"] == estimator and g["residual_q50"] is not None)
            mine = [g for g in known if low <= g["residual_q50"] < high]
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
        found: dict[tuple[str, str], list[Gap]] = {}
        for record in condition.records:
            for gap in record.get("gaps", []):
                found.setdefault((gap["samples"], gap["estimator"]), []).append(gap)
        keys = ("cosine", "relative_error", "norm_ratio", "residual_q50", "radius_q50")
        for (samples, estimator), group in found.items():
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
        radii = [[v for r in condition.records for v in _where(r, "spectrum", "radius", w)] for w in (True, False)]
        exponents = [v for r in condition.records for w in (True, False) for v in _where(r, "exponents", "mean", w)]
        searches = [record["search"] for record in condition.records if "search" in record]
        hits = [hit for it in searches for hit in it["found"]]
        ends = [count == 1 for it in searches for count in it["clusters"]]
        growing = f", {sum(v is not None and v > 0 for v in exponents)} of {len(exponents)} > 0" if exponents else ""
        shares = [f"{sum(it)} of {len(it)}" if it else "-" for it in (hits, ends)]
        rows.append([condition.name, *map(_span, radii), _span(exponents) + growing, *shares])
    header = ["weights", "radius, solved", "radius, unsolved", "exponent", "fixed point near"]
    text = (
        "Spectral radius of a cycle's Jacobian at training depth; largest Lyapunov exponent (nats per cycle) of "
        "samples that do not settle; samples near whose end a fixed point was found; samples whose four starts "
        "(learned, zero, random, another's end) led to one end. Median (least-greatest) over samples."
    )
    return [text, "", *table([*header, "one end from all starts"], rows)]


def _where(record: WeightsRecord, part: str, key: str, solved: bool) -> list[float | None]:
    found = record.get(part)
    return [v for v, s in zip(found[key], found["solved"], strict=True) if s == solved] if found else []


def _span(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]  # None is nan, of what has diverged
    parts = [band(min(known), float(np.median(known)), max(known))] if known else []
    if len(known) < len(values):
        parts.append(f"{len(values) - len(known)} not finite")
    return ", ".join(parts) or "-"
