"""Which samples take part in the update that is running, for who looks on at a cell's calls.

A cell updates all rows of a batch, and whoever calls it puts back those that are done. What it returns does not show
which these are, so that a row that rests would look like one that has arrived.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_GOING: ContextVar[Tensor | None] = ContextVar("rows going", default=None)


def rows_going() -> Tensor | None:
    """Return which samples the update that is running is of, (batch,) bool; None for all."""
    return _GOING.get()


@contextmanager
def of_rows(going: Tensor) -> Iterator[None]:
    """Run an update of some samples alone, (batch,) bool, in the block."""
    if torch.compiler.is_compiling():  # nobody looks on there
        yield
        return
    before = _GOING.set(going)
    try:
        yield
    finally:
        _GOING.reset(before)
