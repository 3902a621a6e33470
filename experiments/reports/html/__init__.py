"""One page of HTML that holds all of a report: no network, no script but ours, and readable without that."""

from loopgrad.experiments.reports.html.charts import Chart, Point, Series
from loopgrad.experiments.reports.html.page import document
from loopgrad.experiments.reports.html.parts import (
    Bar,
    Cell,
    Charts,
    Code,
    Film,
    Fold,
    Frame,
    Page,
    Section,
    Table,
    Text,
    number,
)

__all__ = [
    "Bar",
    "Cell",
    "Chart",
    "Charts",
    "Code",
    "Film",
    "Fold",
    "Frame",
    "Page",
    "Point",
    "Section",
    "Series",
    "Table",
    "Text",
    "document",
    "number",
]
