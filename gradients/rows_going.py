"""What a running update is part of, for who looks on at a cell's calls: of which samples, of a rollout at all.

A cell updates all rows of a batch, and whoever calls it puts back those that are done. What it returns does not show
which these are, so that a row that rests would look like one that has arrived. And updates may be tried beforehand, to
see what they cost or where they end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_GOING: ContextVar[Tensor | None] = ContextVar("rows going", default=None)
_TRIED: ContextVar[bool] = ContextVar("tried", default=False)


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


def is_tried() -> bool:
    """Return whether the update that is running is none of a rollout's, but one that is tried beforehand."""
    return _TRIED.get()


@contextmanager
def tried() -> Iterator[None]:
    """Run updates in the block that are none of a rollout's."""
    before = _TRIED.set(True)
    try:
        yield
    finally:
        _TRIED.reset(before)
