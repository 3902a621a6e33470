"""From records to what a reader sees: one row per estimator with the spread over seeds, and one sentence."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from loopgrad.experiments.records import RunRecord

Judge = Literal["exact_accuracy", "token_accuracy"]


@dataclass(frozen=True)
class Spread:
    """Mean, least and greatest value over seeds; nan where no seed has a value."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Spread":
        """Return the spread of the values that are not None."""
        known = [value for value in values if value is not None]
        if not known:
            return cls(math.nan, math.nan, math.nan)
        low, high = min(known), max(known)
        return cls(min(max(statistics.fmean(known), low), high), low, high)  # rounding may take it beyond

    def text(self, show: Callable[[float], str]) -> str:
        """Return "mean (low-high)", or the one value if all are shown alike."""
        if math.isnan(self.mean):
            return "-"
        low, high = show(self.low), show(self.high)
        return show(self.mean) if low == high else f"{show(self.mean)} ({low}-{high})"


def band(low: float, middle: float, high: float) -> str:
    """Return "middle (low-high)", to two digits each."""
    return f"{middle:.2g} ({low:.2g}-{high:.2g})"


def by_estimator(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Group records by estimator, in order of first appearance."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(record["estimator"], []).append(record)
    return groups


def spread(records: Sequence[RunRecord], *path: str | int) -> Spread:
    """Return the spread over records of the value at a path of keys, such as "residuals", "joint", "map", 1."""
    found: list[Any] = list(records)
    for key in path:
        found = [it if it is None else it[key] if isinstance(key, int) else it.get(key) for it in found]
    return Spread.of(found)


def percent(value: float) -> str:
    """Return a fraction in percent."""
    return f"{100 * value:.1f}"


def significant(value: float) -> str:
    """Return a number to two digits."""
    return f"{value:.2g}"


@dataclass(frozen=True)
class Column:
    """A column of the table: title, path of the value in a record, how a number is shown, with a spread or not."""

    title: str
    path: tuple[str | int, ...]
    show: Callable[[float], str]
    spread: bool = False

    def text(self, records: Sequence[RunRecord], always_spread: bool) -> str:
        """Return the mean over records, with least and greatest where asked for."""
        found = spread(records, *self.path)
        if not (self.spread or always_spread):
            found = Spread(found.mean, found.mean, found.mean)
        return found.text(self.show)


RESIDUAL = ("residuals", "joint", "map_relative", 1)
COLUMNS = (
    Column("exact %", ("exact_accuracy",), percent, spread=True),
    Column("time / BPTT", ("time_ratio_to_bptt",), lambda value: f"{value:.2f}"),
    Column("saved MiB", ("saved_bytes",), lambda value: f"{value / 2**20:.2f}"),
    Column("peak MiB", ("peak_bytes",), lambda value: f"{value / 2**20:.2f}"),
    Column("cosine", ("gradient_cosine",), lambda value: f"{value:.3f}"),
    Column("rel. error", ("gradient_relative_error",), significant),
    Column("tokens %", ("token_accuracy",), percent, spread=True),
    Column("loss", ("loss",), significant),
    Column("evaluations", ("cell_evaluations",), lambda value: f"{value:.0f}"),
    Column("vjps", ("vjps",), lambda value: f"{value:.0f}"),
    Column("GFLOPs", ("flops",), lambda value: f"{value / 1e9:.2f}"),
    Column("residual", RESIDUAL, significant),
)
# only where samples have other right answers than their label
MATCHES = Column("match %", ("match_accuracy",), percent, spread=True)
# of implicit estimators only
VERDICTS = (Column("trusted %", ("verdicts", "mean_trusted"), percent, spread=True),)


def columns_of(records: Sequence[RunRecord]) -> tuple[Column, ...]:
    """Return the columns that these records have values for, and that say more than another one."""
    exact, *others = COLUMNS
    matches = (MATCHES,) if other_answers(records) else ()
    return (exact, *matches, *others, *(VERDICTS if any(record.get("verdicts") for record in records) else ()))


def other_answers(records: Sequence[RunRecord]) -> bool:
    """Return whether in some run a sample was solved by another answer than its label."""
    told = [(record.get("match_accuracy"), record["exact_accuracy"]) for record in records]
    return any(None not in scores and scores[0] != scores[1] for scores in told)


def table(
    records: Sequence[RunRecord], columns: Sequence[Column] | None = None, always_spread: bool = True
) -> tuple[list[str], list[list[str]]]:
    """Return the header and one row per estimator."""
    columns = columns_of(records) if columns is None else columns
    groups = by_estimator(records)
    rows = [[name, *(column.text(group, always_spread) for column in columns)] for name, group in groups.items()]
    return ["estimator", *(column.title for column in columns)], rows


def reading(records: Sequence[RunRecord]) -> str:
    """Return one sentence that says what each estimator gave and cost, beside BPTT where it took part."""
    groups = by_estimator(records)
    seeds = len({record["seed"] for record in records})
    scale = f"{seeds} seeds" if seeds > 1 else "one seed, so without a spread"
    first = records[0]
    opening = f"After {first['train_steps']} steps of {first['model']} on {first['task']} ({scale})"
    base = next((name for name in groups if name == "bptt"), None)
    key, words = judged(records)
    clauses = []
    if base:
        clauses.append(f"BPTT {words.format(score(groups[base], key))}")
    for name, group in groups.items():
        if name == base:
            continue
        clause = f"{name} {score(group, key)} at {spread(group, 'time_ratio_to_bptt').mean:.2f}x BPTT's time"
        if base and (whole := spread(groups[base], "saved_bytes").mean):
            clause += f" and {spread(group, 'saved_bytes').mean / whole:.2f}x its saved bytes"
        cosine = spread(group, "gradient_cosine").mean
        exact = group[0]["kind"] == "exact"
        clauses.append(clause + (" with the same gradient" if exact else f" with gradient cosine {cosine:.2f}"))
    return f"{opening}, {'; '.join(clauses)}."


def judged(records: Sequence[RunRecord]) -> tuple[Judge, str]:
    """Return by what runs are told apart: by samples solved; by tokens where no run solves any, as in a text."""
    if any(record["exact_accuracy"] for record in records) or any(not record["token_accuracy"] for record in records):
        return "exact_accuracy", "solves {} of the held-out samples exactly"
    return "token_accuracy", "has {} of the held-out tokens right, and no run solves a sample exactly"


def score(group: Sequence[RunRecord], key: str) -> str:
    """Return the mean accuracy over seeds, in percent."""
    return f"{100 * spread(group, key).mean:.1f} %"
