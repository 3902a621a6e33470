"""The words of a claim's report: the verdict first, then what was run, what came out, and what would change it."""

import math
import statistics
from collections.abc import Mapping, Sequence

from loopgrad.experiments.records import ClaimRecord, TrainedRecord
from loopgrad.experiments.reports.claims.growth import steps_to
from loopgrad.experiments.reports.claims.verdicts import HOLDS, OPEN, Finding, is_score


def heading(verdict: str) -> str:
    """Return a verdict as it stands in front of a claim."""
    return f"{verdict[0].upper()}{verdict[1:]}."


def paragraph(record: ClaimRecord, found: Sequence[Finding], verdict: str) -> str:
    """Return the paragraph of a claim."""
    runs = record["trainings"]
    seeds = sorted({it["seed"] for it in runs})
    steps = sorted({it["train_steps"] for it in runs})
    told = f"{steps[0]} steps" if len(steps) == 1 else f"{steps[0]} to {steps[-1]} steps"
    number = len({it["condition"] for it in runs})
    parts = [
        f"**{heading(verdict)}** {record['statement']} Published: {record['published']}",
        f"Here {number} conditions were trained for {told}, seeds {', '.join(map(str, seeds))}"
        + (f"; {record['equal']}" if record["equal"] else "")
        + ".",
        *(difference(it, record["contrasts"][it.name].get("at", "exact")) for it in found),
    ]
    if verdict == OPEN:
        parts += decided_by(record, found)
    return " ".join([*parts, f"What would change this: {record['change']}"])


def difference(found: Finding, at: str) -> str:
    """Return the sentence of one difference."""
    if not found.differences:
        return f"The claim says that {found.says}: not measured."
    points = is_share(at)
    show = (lambda value: f"{100 * value:+.1f}") if points else (lambda value: f"{value:+.3g}")
    unit = " points" if points else ""
    mean, least, most = statistics.fmean(found.differences), min(found.differences), max(found.differences)
    whole = "" if math.isinf(found.low) else f", 95 % interval {show(found.low)} to {show(found.high)}"
    least_that = f" (at least {show(found.by)} asked for)" if found.by else ""
    end = found.verdict if found.verdict != OPEN else f"undecided, {found.reason}"
    return (
        f"The claim says that {found.says}: {show(mean)}{unit} (seeds {show(least)} to {show(most)}{whole})"
        f"{least_that}: {end}."
    )


def decided_by(record: ClaimRecord, found: Sequence[Finding]) -> list[str]:
    """Return what size would decide the differences that are undecided."""
    told = []
    for it in (it for it in found if it.verdict == OPEN):
        if it.seeds:
            told.append(f"At this spread {it.seeds} seeds would decide whether {it.says}.")
        elif "learnt anything" in it.reason:
            told += _steps_that_would_do(record, it)
    return told


def _steps_that_would_do(record: ClaimRecord, found: Finding) -> list[str]:
    contrast = record["contrasts"][found.name]
    told = []
    for name in dict.fromkeys((contrast["more"], contrast["less"] or contrast["more"])):
        runs = [it for it in record["trainings"] if it["condition"] == name]
        needed = [steps_to(it["curve"]["step"], it["curve"]["exact_accuracy"]) for it in runs]
        known = [it for it in needed if it is not None]
        if known:
            told.append(f"By its fitted curve {name} would solve half of the samples after {max(known):.2g} steps.")
        else:
            told.append(f"{name} has no curve to fit: nothing of it has grown.")
    return told


def is_share(at: str) -> bool:
    """Return whether a reading is told in percent."""
    return is_score(at) or at.partition("@")[0] in ("solved", "unsolved", "unsettled")


def scores(runs: Sequence[TrainedRecord], at: str) -> str:
    """Return a reading over seeds, "mean (least-greatest)", shares in percent; "-" where there is none."""
    values = [value for it in runs if (value := it["readings"].get(at)) is not None]
    if not values:
        return "-"
    show = (
        (lambda value: f"{100 * value:.1f}")
        if is_share(at) or at.partition("@")[0] in ("solved", "unsolved")
        else (lambda value: f"{value:.3g}")
    )
    low, high = show(min(values)), show(max(values))
    return low if low == high else f"{show(statistics.fmean(values))} ({low}-{high})"


def by_condition(runs: Sequence[TrainedRecord]) -> Mapping[str, list[TrainedRecord]]:
    """Return trainings by their condition, in order of first appearance."""
    groups: dict[str, list[TrainedRecord]] = {}
    for run in runs:
        groups.setdefault(run["condition"], []).append(run)
    return groups


def one_sentence(found: Sequence[Finding], verdict: str) -> str:
    """Return the verdict and its main difference in one sentence, for a list of claims."""
    main = next((it for it in found if it.verdict == verdict or verdict == HOLDS), found[0])
    if not main.differences:
        return heading(verdict)
    mean = statistics.fmean(main.differences)
    return f"{heading(verdict)[:-1]}: {main.says} ({mean:+.3g}, {len(main.differences)} seeds)."
