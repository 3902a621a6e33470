"""Reports of claims, rendered from their records alone."""

from loopgrad.experiments.reports.claims.index import check_index, index, lines, listed, write_index
from loopgrad.experiments.reports.claims.page import render

__all__ = ["check_index", "index", "lines", "listed", "render", "write_index"]
