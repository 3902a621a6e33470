"""How far the making of data is, on the terminal, where it takes more than a moment."""

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

PATIENCE = 2.0
"""Seconds before anything is shown."""
EVERY = 0.2
"""Seconds between two changes of what is shown."""


@contextmanager
def shown(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes how many are made; it shows them on standard error, if that is a terminal.

    Worker processes show nothing: their command does.

    Args:
        what: What is made, such as "puzzles of size 9".
        total: How many.
    """
    if not sys.stderr.isatty() or multiprocessing.parent_process() is not None:
        yield lambda made: None
        return
    with Progress(console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        job = bar.add_task(f"Making {total} {what}", total=total, visible=False)
        shown_from = time.monotonic() + PATIENCE

        def tell(made: int) -> None:
            nonlocal shown_from
            if time.monotonic() >= shown_from:
                bar.update(job, completed=made, visible=True, refresh=True)
                shown_from = time.monotonic() + min(PATIENCE, EVERY)

        yield tell
