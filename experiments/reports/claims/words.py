"""The words of a claim's report: the verdict first, then what was run, what came out, and what would change it."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from loopgrad.experiments.records import ClaimRecord, DifferenceRecord, TrainedRecord
from loopgrad.experiments.reports.claims.growth import steps_to
from loopgrad.experiments.reports.claims.verdicts import (
    FAILS,
    FEW,
    FLAT,
    FULL,
    HOLDS,
    LEAST_SEEDS,
    OPEN,
    Finding,
    is_score,
)


def heading(verdict: str) -> str:
    """Return a verdict as it stands in front of a claim."""
    return f"{verdict[0].upper()}{verdict[1:]}."


def paragraph(record: ClaimRecord, found: Sequence[Finding], verdict: str) -> str:
    """Return the paragraph of a claim, in which nothing is said twice."""
    published, *parts = told(record, found, verdict)
    return " ".join([f"**{heading(verdict)}** {record['statement']} {published}", *dict.fromkeys(parts)])


def told(record: ClaimRecord, found: Sequence[Finding], verdict: str) -> list[str]:
    """Return what is said of a claim: what was published, what was run, what came out, what would change it."""
    runs = record["trainings"]
    seeds = sorted({it["seed"] for it in runs})
    steps = sorted({it["train_steps"] for it in runs})
    trained = f"{steps[0]} steps" if len(steps) == 1 else f"{steps[0]} to {steps[-1]} steps"
    number = len({it["condition"] for it in runs})
    parts = [
        f"Published: {record['published']}",
        f"Here {_several(number, 'condition')} were trained for {trained}, "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
        + (f"; {record['equal']}" if record["equal"] else "")
        + ".",
        *outcomes(record, found),
    ]
    if verdict == OPEN:
        parts += decided_by(record, found)
    return [*parts, f"What would change this: {record['change']}"]


def in_short(record: ClaimRecord, found: Sequence[Finding], verdict: str) -> str:
    """Return the verdict, the claim, the difference that decides it, what would where none does, and a tally."""
    deciding = next((it for it in found if it.verdict == verdict), found[0])
    parts = [record["statement"], *outcomes(record, [deciding])]
    if verdict == OPEN:
        parts += decided_by(record, [deciding])
    if len(found) > 1:
        parts.append(tally(found))
    return " ".join([f"**{heading(verdict)}**", *parts])


def tally(found: Sequence[Finding]) -> str:
    """Return how many differences hold, do not, and are undecided."""
    counts = Counter(it.verdict for it in found)
    said = {HOLDS: ("holds", "hold"), FAILS: ("does not", "do not"), OPEN: ("is undecided", "are undecided")}
    parts = [f"{counts[kind]} {words[counts[kind] > 1]}" for kind, words in said.items() if counts[kind]]
    told = f"all {parts[0].partition(' ')[2]}" if len(parts) == 1 else _listed(parts)
    return f"Of its {len(found)} differences {told}."


def outcomes(record: ClaimRecord, found: Sequence[Finding]) -> Iterator[str]:
    """Yield a sentence for each difference that there is a number of, and one for all that are silent for a reason."""
    silent: dict[str, list[Finding]] = {}
    for it in found:
        if it.reason in (FLAT, FULL) or not it.differences:
            silent.setdefault(it.reason if it.differences else "not measured", []).append(it)
        else:
            yield difference(it, record["contrasts"][it.name])
    for reason, group in silent.items():
        told = f"undecided, {reason}" if reason in (FLAT, FULL) else reason
        yield f"The claim says {_listed([f'that {it.says}' for it in group], '; ', '; and ')}: {told}."


def difference(found: Finding, contrast: DifferenceRecord) -> str:
    """Return the sentence of one difference."""
    show, unit = _shown(contrast.get("at", "exact"), signed=contrast["less"] is not None)
    mean, least, most = statistics.fmean(found.differences), min(found.differences), max(found.differences)
    spread = [f"seeds {show(least)} to {show(most)}" if len(found.differences) > 1 else "one seed"]
    spread += [] if math.isinf(found.low) else [f"95 % interval {show(found.low)} to {show(found.high)}"]
    spread[-1] += f"; at least {show(found.by)} asked for" if found.by else ""
    end = found.verdict if found.verdict != OPEN else f"undecided, {found.reason}"
    return f"The claim says that {found.says}: {show(mean)}{unit} ({', '.join(spread)}): {end}."


def decided_by(record: ClaimRecord, found: Sequence[Finding]) -> Iterator[str]:
    """Yield what size would decide the differences that are undecided."""
    if any(it.reason == FEW and it.differences for it in found):
        yield f"The least that decide are {LEAST_SEEDS} seeds."
    for it in found:
        if it.seeds:
            yield f"At this spread {it.seeds} seeds would decide whether {it.says}."
    flat = [record["contrasts"][it.name] for it in found if it.reason == FLAT]
    trained = [it for it in flat if it.get("at", "exact") in ("exact", "flops")]  # which is what curves are of
    names = dict.fromkeys(name for it in trained for name in (it["more"], it["less"]) if name is not None)
    yield from _steps_that_would_do(record, list(names))


def _steps_that_would_do(record: ClaimRecord, names: Sequence[str]) -> Iterator[str]:
    silent = []
    for name in names:
        curves = [it["curve"] for it in record["trainings"] if it["condition"] == name]
        needed = [steps_to(it["step"], it["exact_accuracy"]) for it in curves]
        if known := [it for it in needed if it is not None]:
            steps = f"{float(f'{max(known):.2g}'):,.0f}"
            yield f"By its fitted curve {name} would solve half of the samples after {steps} steps."
        else:
            silent.append(name)
    if silent:
        yield f"Of {_listed(silent)} too little has grown to say how many steps it would take."


def is_share(at: str) -> bool:
    """Return whether a reading is told in percent."""
    return is_score(at) or at.partition("@")[0] in ("solved", "unsolved", "unsettled")


def _shown(at: str, signed: bool) -> tuple[Callable[[float], str], str]:
    """Return how values of a reading, or differences of it, are written, and the unit behind them."""
    sign = "+" if signed else ""
    if is_share(at):
        return lambda value: f"{round(100 * value, 1) + 0.0:{sign}.1f}", " points" if signed else " %"
    return lambda value: f"{value + 0.0:{sign}.3g}", ""


def scores(runs: Sequence[TrainedRecord], at: str) -> str:
    """Return a reading over seeds, "mean (least-greatest)", shares in percent; "-" where there is none."""
    values = [value for it in runs if (value := it["readings"].get(at)) is not None]
    if not values:
        return "-"
    show, _ = _shown(at, signed=False)
    low, high = show(min(values)), show(max(values))
    return low if low == high else f"{show(statistics.fmean(values))} ({low}-{high})"


def by_condition(runs: Sequence[TrainedRecord]) -> Mapping[str, list[TrainedRecord]]:
    """Return trainings by their condition, in order of first appearance."""
    groups: dict[str, list[TrainedRecord]] = {}
    for run in runs:
        groups.setdefault(run["condition"], []).append(run)
    return groups


def _several(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _listed(words: Sequence[str], between: str = ", ", last: str = " and ") -> str:
    return f"{between.join(words[:-1])}{last}{words[-1]}" if len(words) > 1 else words[0]
