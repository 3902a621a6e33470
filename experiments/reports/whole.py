"""A report is made whole before any of it is written: its page and all its figures, or one line of why not."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from loopgrad.analysis import plots
from loopgrad.analysis.files import replace_all
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.reports.inert import shown


@contextmanager
def making(path: Path) -> Iterator[None]:
    """Make a report of the records in a file, whose numbers may be so far apart that arithmetic or drawing fails.

    Raises:
        ConfigError: No report can be made of them; the message says why.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # a letter that the font lacks, a scale that has no end
        try:
            yield
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            reason = str(error) if type(error) is ValueError else repr(error)
            raise ConfigError(f"{path}: no report can be made of these records: {shown(reason)[:500]}") from error


def rendered(drawn: Iterable[tuple[str, plots.Drawn]]) -> dict[str, bytes]:
    """Return the contents of the files of figures, each given with its name, by the files' names.

    Raises:
        ImportError: matplotlib is not installed.
    """
    return {f"{name}.{suffix}": it for name, figure in drawn for suffix, it in plots.rendered(figure).items()}


def write(folder: Path, page: str, figures: Mapping[str, bytes], single: bytes) -> None:
    """Write report.md, the files of its figures and report.html into a folder, all or none."""
    contents = {folder / name: content for name, content in figures.items()}
    replace_all({**contents, folder / "report.md": page.encode(), folder / "report.html": single})


def say(console: Console, text: str) -> None:
    """Print a line as it is: nothing in it is markup."""
    console.print(Text(shown(text)))
