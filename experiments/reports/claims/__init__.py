"""Reports of claims, rendered from their records alone."""

from loopgrad.experiments.reports.claims.index import check_index, index, lines, listed, write_index
from loopgrad.experiments.reports.claims.page import read, render

__all__ = ["check_index", "index", "lines", "listed", "read", "render", "write_index"]
