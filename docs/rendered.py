"""Pages with curves of the results, rendered from their records by `loopgrad report` while the site builds.

They stand beside the records, out of git: a page is made anew where a record is younger than it.
"""

import io
import shutil
import tempfile
from pathlib import Path

from rich.console import Console
from sphinx.application import Sphinx
from sphinx.util.display import status_iterator

from loopgrad.experiments.commands.report import render

RESULTS = Path(__file__).parent / "results"


def folders() -> list[Path]:
    """Return the folders below results that have a report, of comparisons, sweeps, claims and analyses; and benches."""
    return sorted([*(path.parent for path in RESULTS.rglob("report.md")), RESULTS / "bench"])


def pages(folder: Path) -> list[Path]:
    """Return the pages with curves of a folder, which git does not track."""
    if folder.name == "bench":
        return [path.with_suffix(".html") for path in records(folder)]
    return [folder / "report.html"]


def records(folder: Path) -> list[Path]:
    """Return the files that the pages of a folder are rendered from."""
    if folder.name == "bench":
        return [path for path in sorted(folder.glob("*.json")) if not path.stem.endswith("-figure")]
    return sorted(folder.rglob("records.jsonl"))


def write_reports(app: Sphinx) -> None:
    """Render what is younger than its page, in a copy, so that nothing else of the results changes."""
    old = [folder for folder in folders() if not _fresh(folder)]
    for folder in status_iterator(old, "rendering reports... ", length=len(old), stringify_func=lambda it: it.name):
        with tempfile.TemporaryDirectory() as there:
            copy = Path(there) / folder.name
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.png", "*.svg", "*.html"))
            render(copy, Console(file=io.StringIO()))
            for page in pages(folder):
                shutil.copyfile(copy / page.name, page)


def _fresh(folder: Path) -> bool:
    made = pages(folder)
    youngest = max(path.stat().st_mtime for path in records(folder))
    return all(page.exists() and page.stat().st_mtime >= youngest for page in made)


def setup(app: Sphinx) -> dict[str, bool]:
    """Render reports before the gallery links to them."""
    app.connect("builder-inited", write_reports, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
