"""What a page is made of, as plain values: sections of text, tables, charts, code and what unfolds."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from loopgrad.experiments.reports.html.charts import Chart, Drawing, drawn


@dataclass(frozen=True)
class Bar:
    """A part of a bar in a cell: its share of the whole, the number of its colour, and what it is."""

    share: float
    colour: int
    title: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what is shown, and by what it is sorted if that is a number; or a bar beside its text."""

    text: str
    value: float | None = None
    bars: Sequence[Bar] = ()

    @property
    def sort(self) -> str:
        """Return the number that the cell is sorted by, "" where it has none."""
        return "" if self.value is None or not math.isfinite(self.value) else f"{self.value:.9g}"

    @property
    def segments(self) -> list[tuple[float, float, Bar]]:
        """Return where each part of the bar begins and how wide it is, in percent."""
        found, at = [], 0.0
        for bar in self.bars:
            found.append((round(at, 2), round(100 * bar.share, 2), bar))
            at += 100 * bar.share
        return found


def number(text: str) -> Cell:
    """Return a cell that is sorted by the number that its text begins with, and is at the right if it has one."""
    found = re.match(r"[+-]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?", text)
    return Cell(text, float(found[0].replace(",", "")) if found else None)


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str
    small: bool = False


@dataclass(frozen=True)
class Table:
    """A table that sorts, and is filtered where it has more than a few rows; `caption` says what it holds.

    A row is as long as the header.
    """

    kind: ClassVar[str] = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    colours: Sequence[str] = ()  # what the colours of bars mean, in their order

    @property
    def numeric(self) -> list[bool]:
        """Return which columns hold numbers."""
        columns = [[row[i] for row in self.rows] for i in range(len(self.header))]
        return [any(it.sort for it in column) and not any(it.bars for it in column) for column in columns]


@dataclass(frozen=True)
class Charts:
    """Charts side by side, as far as there is room."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart]

    @property
    def drawings(self) -> list[Drawing]:
        """Return those that have a point, with the places of their marks."""
        return [drawing for chart in self.charts if (drawing := drawn(chart)).series]


@dataclass(frozen=True)
class Code:
    """Text to be copied as it is, with what it is."""

    kind: ClassVar[str] = "code"
    label: str
    text: str


@dataclass(frozen=True)
class Frame:
    """A picture of a film: what it is, and its lines, each in pieces of which some are marked."""

    caption: str
    lines: Sequence[Sequence[tuple[str, bool]]]


@dataclass(frozen=True)
class Film:
    """Frames that are shown one by one, or run, all at once where there is no script; `beside` stays beside them."""

    kind: ClassVar[str] = "film"
    title: str
    frames: Sequence[Frame]
    beside: Frame | None = None


@dataclass(frozen=True)
class Fold:
    """Parts that unfold below one line."""

    kind: ClassVar[str] = "fold"
    summary: str
    parts: Sequence["Part"]


Part = Text | Table | Charts | Code | Film | Fold


@dataclass(frozen=True)
class Section:
    """A section; `name` is what links lead to."""

    name: str
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """A page: of what kind the report is, its title, what it says in short, facts by name, and its sections."""

    kind: str
    title: str
    lead: Sequence[str]
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
