"""Charts of lines or points as inline SVG: where each mark lies, and what it says of itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from loopgrad.experiments.reports.html.scales import GREATEST, Scale, ticks, told

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 48
COLOURS = 8  # told apart, each with a mark of its own; from there on lines are dashed
MOST_POINTS = 100  # of a line; more are put together
MOST_MARKS = 5000  # of a chart


@dataclass(frozen=True)
class Point:
    """A point, with the ends of its spread if it has one and a word of its own."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one name."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Chart:
    """A chart; without `lines` its points stand alone. A value that is not finite has no mark."""

    title: str
    caption: str
    xlabel: str
    ylabel: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    lines: bool = True


@dataclass(frozen=True)
class Mark:
    """A mark: its place in the drawing, its spread there, and what it says."""

    x: float
    y: float
    whisker: tuple[float, float] | None
    title: str


@dataclass(frozen=True)
class Line:
    """A series as it is drawn; `path` joins its marks and `band` is around them, both empty without lines."""

    name: str
    colour: int
    dashed: bool
    marks: list[Mark]
    path: str = ""
    band: str = ""
    small: bool = False


@dataclass(frozen=True)
class Drawing:
    """A chart with the places of all it is made of."""

    chart: Chart
    series: list[Line] = field(default_factory=list)
    xticks: list[tuple[float, str]] = field(default_factory=list)
    yticks: list[tuple[float, str]] = field(default_factory=list)
    numbers: list[tuple[str, str, str, str]] = field(default_factory=list)

    box: ClassVar = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    size: ClassVar = (WIDTH, HEIGHT)

    @property
    def notes(self) -> bool:
        """Return whether a point has a word of its own."""
        return any(note for _, note, _, _ in self.numbers)


def drawn(chart: Chart) -> Drawing:
    """Return a chart with its places; without series if there is nothing to draw."""
    kept = [Series(series.name, _drawable(series.points)) for series in chart.series]
    kept = [series for series in kept if series.points]
    if chart.lines:
        kept = [Series(series.name, thinned(series.points)) for series in kept]
    points = [point for series in kept for point in series.points]
    if not points or len(points) > MOST_MARKS:
        return Drawing(chart)
    x = Scale.of([point.x for point in points], chart.log_x)
    ends = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    y = Scale.of(ends, chart.log_y)
    lines = [_line(i, series, chart, x, y) for i, series in enumerate(kept)]
    numbers = [(series.name, point.note, told(point.x), _value(point)) for series in kept for point in series.points]
    return Drawing(
        chart,
        lines,
        [(_across(x, tick), text) for tick, text in ticks(x)],
        [(_down(y, tick), text) for tick, text in ticks(y)],
        numbers,
    )


def _drawable(points: Sequence[Point]) -> list[Point]:
    def fits(value: float | None) -> bool:
        return value is not None and math.isfinite(value) and abs(value) < GREATEST

    found = [point for point in points if fits(point.x) and fits(point.y)]
    return [it if fits(it.low) and fits(it.high) else Point(it.x, it.y, note=it.note) for it in found]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most so many points: where there are more, means of as many in a row as that takes."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [Point(_mean([it.x for it in group]), _mean([it.y for it in group])) for group in groups]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(value / len(values) for value in values)


def _line(number: int, series: Series, chart: Chart, x: Scale, y: Scale) -> Line:
    marks = [_mark(series.name, point, chart, x, y) for point in series.points]
    found = Line(series.name, number % COLOURS, number >= COLOURS, marks)
    if not chart.lines:
        return found
    path = "M" + "L".join(f"{mark.x:g},{mark.y:g}" for mark in marks)
    band, ends = "", [mark for mark in marks if mark.whisker]
    if len(ends) == len(marks) > 1 and len(chart.series) <= COLOURS:  # more bands hide each other
        upper = "L".join(f"{mark.x:g},{mark.whisker[1]:g}" for mark in ends if mark.whisker)
        lower = "L".join(f"{mark.x:g},{mark.whisker[0]:g}" for mark in reversed(ends) if mark.whisker)
        band = f"M{upper}L{lower}Z"
    return Line(series.name, found.colour, found.dashed, marks, path, band, small=len(marks) > 40)


def _mark(name: str, point: Point, chart: Chart, x: Scale, y: Scale) -> Mark:
    ends = None if point.low is None or point.high is None else (_down(y, point.low), _down(y, point.high))
    note = f" ({point.note})" if point.note else ""
    title = f"{name}{note}: {chart.ylabel} {_value(point)} at {chart.xlabel} {told(point.x)}"
    return Mark(_across(x, point.x), _down(y, point.y), ends, title)


def _value(point: Point) -> str:
    if point.low is None or point.high is None or point.low == point.high:
        return told(point.y)
    return f"{told(point.y)} ({told(point.low)} to {told(point.high)})"


def _across(scale: Scale, value: float) -> float:
    return round(LEFT + (WIDTH - RIGHT - LEFT) * scale.at(value), 1)


def _down(scale: Scale, value: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * scale.at(value), 1)
