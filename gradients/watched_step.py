"""The number of an update as an int that notes whether a cell reads more of it than its place in a cycle."""

from collections.abc import Callable
from typing import Any

from torch import nn

from loopgrad.gradients.batch_first import BatchFirst
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.stepwise import Stepwise
from loopgrad.gradients.untouched import Mode
from loopgrad.gradients.wrappers import unwrapped


class Step(int):
    """An int whose remainders by a divisor of the period are plain ints; any other use of it in Python is noted.

    What C reads directly is not: an index of a list or an array, the end of a range.

    Args:
        number: The int.
        period: Of the cell.
        note: Called at any other use.
    """

    period: int
    note: Callable[[], None]

    def __new__(cls, number: int, period: int, note: Callable[[], None]) -> "Step":
        """Return the int."""
        step = super().__new__(cls, number)
        step.period, step.note = period, note
        return step

    def __mod__(self, divisor: Any) -> Any:
        """Return the remainder."""
        if type(divisor) is not int or not divisor or self.period % divisor:
            self.note()
        return int.__mod__(self, divisor)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy it as a plain int."""
        self.note()
        return int, (int.__int__(self),)


def _noting(name: str) -> Any:
    own = getattr(int, name)

    def read(self: Step, *args: Any, **named: Any) -> Any:
        self.note()
        return own(self, *args, **named) if callable(own) else own.__get__(self)

    return read if callable(own) else property(read)


# what makes an object of it, and no number, is left alone
_PLAIN = {*dir(object), "__getnewargs__", "from_bytes"} - {"__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"}
_PLAIN -= {"__hash__", "__repr__", "__str__", "__format__"}
for _name in set(dir(int)) - _PLAIN - {"__mod__"}:
    setattr(Step, _name, _noting(_name))


class WatchedCell(nn.Module):
    """A cell that is told its updates by such ints; whoever puts it around another looks at `otherwise`.

    Args:
        cell: The caller's cell.

    Attributes:
        otherwise: Whether an update has read of its number more than its place in a cycle.
    """

    is_around = True

    def __init__(self, cell: nn.Module):
        super().__init__()
        self.cell, self.otherwise = cell, False

    @property
    def period(self) -> Any:
        """That of the cell."""
        return getattr(unwrapped(self.cell), "period", 1)

    def note(self) -> None:
        """Note that an update reads its number otherwise."""
        self.otherwise = True

    def forward(self, state: Any, inputs: Any, step: int) -> Any:
        """Apply the update."""
        with _Given():
            return self.cell(state, inputs, Step(step, period_of(self.cell), self.note))


class _Given(Mode):
    """Notes where torch calls are given such an int, which they read themselves."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the call."""
        kwargs = kwargs or {}
        _note((*args, *kwargs.values()))
        return func(*args, **kwargs)


def _note(values: Any) -> None:
    for value in values:
        if isinstance(value, Step):
            value.note()
        elif isinstance(value, tuple | list):
            _note(value)
        elif isinstance(value, slice):
            _note((value.start, value.stop, value.step))


def watching(cell: nn.Module) -> tuple[nn.Module, WatchedCell]:
    """Return a cell whose updates are watched, within what has been put around the caller's own; and the watch."""
    if isinstance(cell, BatchFirst):
        inner, watch = watching(cell.cell)
        return BatchFirst(inner, cell.of_state, cell.of_inputs), watch
    if isinstance(cell, Stepwise):
        inner, watch = watching(cell.cell)
        return Stepwise(inner, cell.readout, cell.start, cell.lengths, cell.dims), watch
    watch = WatchedCell(cell)
    return watch, watch
