"""Samples followed from segment to segment, as parts of a page: answers that run, residuals, verdicts."""

from collections.abc import Sequence

from loopgrad.analysis.verdicts import LABELS
from loopgrad.experiments.records import FollowedRecord
from loopgrad.experiments.reports.html import Chart, Charts, Film, Fold, Frame, Point, Series, Text
from loopgrad.experiments.reports.html.parts import Part
from loopgrad.experiments.reports.summary import significant

MOST = 24  # sets of weights whose samples a page shows
EXPLAINED = "Wrong cells are underlined. Residual: how far the last cycle moved the state, relative to its size."

Own = Sequence[tuple[str, Sequence[FollowedRecord]]]


def films(found: Own) -> list[Part]:
    """Return what unfolds: a part for each sample, with the answers of every set of weights that was followed on it.

    Args:
        found: Names of weights, and their samples.
    """
    shown = [(name, own) for name, own in found if own][:MOST]
    if not shown:
        return []
    parts: list[Part] = [Text(f"Held-out samples after each segment. {EXPLAINED}", small=True)]
    for number in sorted({it["sample"] for _, own in shown for it in own}):
        each = [(name, it) for name, own in shown for it in own if it["sample"] == number]
        solved = [name for name, it in each if it["frames"][-1]["solved"]]
        summary = f"Sample {number}: solved by {len(solved)} of {len(each)}"
        if len(each) == 1:
            summary = f"Sample {number}, {each[0][0]}: {'solved' if solved else 'not solved'}"
        inner: list[Part] = []
        for place, (name, it) in enumerate(each):
            inner += [_film(name, it, with_answer=not place), *_verdict(it)]
        if lines := [Series(name, _points(it)) for name, it in each if it.get("residuals")]:
            caption = "Relative distance between the states at the ends of cycles, over all streams."
            inner.append(Charts([Chart("Residuals of this sample", caption, "cycle", "residual", lines, log_y=True)]))
        parts.append(Fold(summary, inner))
    if len(found) > len(shown):
        parts.append(Text("Further weights are in the records alone.", small=True))
    return parts


def _points(it: FollowedRecord) -> list[Point]:
    return [Point(i, value) for i, value in enumerate(it.get("residuals", []), 1) if value]


def _film(name: str, it: FollowedRecord, with_answer: bool) -> Film:
    frames: list[Frame] = []
    residuals, count = it.get("residuals", []), len(it["frames"])
    lines: Sequence[Sequence[tuple[str, bool]]] = []
    for number, frame in enumerate(it["frames"], 1):
        told = "solved" if frame["solved"] else f"{frame['wrong']} of {it['scored']} cells wrong"
        at = residuals[number * len(residuals) // count - 1] if residuals else None
        told += f", residual {significant(at)}" if at is not None else ""
        told += ", halts" if frame["halts"] and number < count else ""
        if "lines" in frame:
            lines = _pieces(frame["lines"], frame.get("marked", []))
        frames.append(Frame(f"Segment {number}: {told}", lines))
    answer = Frame("A right answer", [[(line, False)] for line in it["right"]])
    return Film(name, frames, answer if with_answer else None)


def _pieces(lines: Sequence[str], marked: Sequence[Sequence[int]]) -> list[list[tuple[str, bool]]]:
    """Return lines cut where marked cells begin and end; what reaches beyond its line is passed over."""
    found = []
    for number, line in enumerate(lines):
        at, pieces = 0, []
        for first, last in sorted((first, last) for row, first, last in marked if row == number):
            if at <= first <= last:
                pieces += [(line[at:first], False), (line[first : last + 1], True)]
                at = last + 1
        found.append([*pieces, (line[at:], False)])
    return found


def _verdict(it: FollowedRecord) -> list[Part]:
    """Return the verdicts of each depth, a sentence each."""
    told = []
    for depth, streams in it.get("verdicts", {}).items():
        of_streams = ", ".join(f"{stream} {LABELS[label]}" for stream, label in streams.items())
        told.append(f"Verdict at {depth} depth: {of_streams}.")
    return [Text(" ".join(told), small=True)] if told else []
