"""The page of a bench, rendered from its record alone: the table of its rows, and a chart of each of its measures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from loopgrad.analysis.files import replace_bytes
from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.records.kinds import Made, Name
from loopgrad.experiments.records.schema import Between
from loopgrad.experiments.reports.html import (
    Cell,
    Chart,
    Charts,
    Page,
    Point,
    Section,
    Series,
    Table,
    Text,
    document,
)
from loopgrad.experiments.reports.html.recipe import facts, recipe
from loopgrad.experiments.reports.html.scales import told
from loopgrad.experiments.reports.inert import inert, shown
from loopgrad.experiments.reports.references import of_configuration
from loopgrad.experiments.reports.whole import making

MOST_ROWS = 2_000  # of the table
MOST_CHARTS, MOST_SERIES = 6, 24
Row = Mapping[str, Any]


class BenchRecord(Made):
    """What a bench measured: its sizes, and a row for each contestant."""

    bench: dict[str, Any]
    rows: Annotated[list[dict[Name, float | bool | str | None | list[Any]]], Between(1, 100_000)]


def render(path: Path) -> Path:
    """Write the page of the record of a bench beside it, and return where.

    Raises:
        ConfigError: There is no record, or it is not that of a bench.
    """
    found = records.read(path, BenchRecord)
    if len(found) != 1:
        raise ConfigError(f"{path}: holds {len(found)} records, and a bench has one")
    with making(path):
        content = document(page(inert(found[0], shown), shown(path.stem)))
    replace_bytes(path.with_suffix(".html"), content)
    return path.with_suffix(".html")


def of_folder(folder: Path) -> list[Path]:
    """Return the records of benches in a folder, by name; what is none, such as the numbers of a figure, is not."""
    return [path for path in sorted(folder.glob("*.json")) if path.is_file() and _is_bench(path)]


def _is_bench(path: Path) -> bool:
    try:
        return {"bench", "rows", "command"} <= records.first(path).keys()
    except ConfigError:
        return False


def page(record: BenchRecord, name: str) -> Page:
    """Return the page of a bench; all texts are as a page shows them."""
    rows, sizes = record["rows"], record["bench"]
    header = list(dict.fromkeys(key for row in rows for key in row if not isinstance(row[key], list)))
    cells = [[_cell(row.get(key)) for key in header] for row in rows[:MOST_ROWS]]
    cut = [Text(f"The first {MOST_ROWS} of {len(rows)} rows.", small=True)] if len(rows) > MOST_ROWS else []
    at = ", ".join(f"{key} {value}" for key, value in sizes.items() if key != "_target_")
    return Page(
        kind="bench",
        title=f"Bench: {name}",
        lead=[f"Measured at {at[:2000]}."] if at else [],
        facts=[("rows", str(len(rows))), *facts(record)],
        sections=[
            Section("rows", "Rows", [Table("A row for each contestant", header, cells), *cut]),
            Section("charts", "Charts", [Charts(charts(rows, header))]),
            recipe(record, sizes, of_configuration(sizes)),
        ],
    )


def _cell(value: Any) -> Cell:
    if value is None or isinstance(value, list):
        return Cell("-")
    if isinstance(value, bool | str):
        return Cell(value if isinstance(value, str) else "yes" if value else "no")
    if isinstance(value, int):
        return Cell(f"{value:,}", value)
    return Cell(f"{value:.2f}" if 0.01 <= abs(value) < 1e4 or value == 0 else f"{value:.1e}", value)


def charts(rows: Sequence[Row], header: Sequence[str]) -> list[Chart]:
    """Return a chart of each measure against the size that varies most.

    What stands before the last word of a row, such as a method, are its sizes; the numbers behind are measures.
    """
    words = [key for key in header if any(isinstance(row.get(key), str) for row in rows)]
    last = max((header.index(key) for key in words if _leads(rows, header, key)), default=-1)
    sizes = [key for key in header[: last + 1] if key not in words]
    if not (varied := [key for key in sizes if _varies(rows, key)]):
        return []
    across = max(varied, key=lambda key: len({row.get(key) for row in rows}))
    names = [key for key in header[: last + 1] if key != across and len({str(row.get(key)) for row in rows}) > 1]
    found = []
    for measure in (key for key in header[last + 1 :] if _varies(rows, key)):
        series: dict[str, list[Point]] = {}
        for row in rows:
            x, y = row.get(across), row.get(measure)
            if x is not None and y is not None:  # and so they are numbers
                name = ", ".join(str(row[key]) if key in words else f"{key} {_told(row.get(key))}" for key in names)
                series.setdefault(name or measure, []).append(Point(x, y))
        if series and len(series) <= MOST_SERIES:
            lines = [Series(name, sorted(points, key=lambda it: it.x)) for name, points in series.items()]
            flat = [[it.x for it in line.points] for line in lines], [[it.y for it in line.points] for line in lines]
            log_x, log_y = map(_spans_decades, flat)
            found.append(Chart(measure, f"Against {across}.", across, measure, lines, log_x, log_y))
    return found[:MOST_CHARTS]


def _leads(rows: Sequence[Row], header: Sequence[str], key: str) -> bool:
    """Return whether a word stands before the first measure that is no whole number."""
    before = header[: header.index(key)]
    return not any(
        isinstance(row.get(it), float) and len({r.get(it) for r in rows}) > 8 for it in before for row in rows
    )


def _varies(rows: Sequence[Row], key: str) -> bool:
    values = [row.get(key) for row in rows if row.get(key) is not None]
    return bool(values) and all(map(_is_number, values)) and len(set(values)) > 1


def _told(value: Any) -> str:
    return told(value) if _is_number(value) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _spans_decades(values: Sequence[Sequence[float]]) -> bool:
    flat = [value for line in values for value in line]
    return min(flat) > 0 and max(flat) > 30 * min(flat)
