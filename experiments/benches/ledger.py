"""The ledger of a bench: each measurement is entered as it ends, so that a bench that is cut off can go on."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from loopgrad.experiments.processes import mapped

Row = dict[str, Any]
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Part:
    """Rows that are measured together and kept together, such as those whose times are ratios of one another.

    Attributes:
        name: For people, such as "64 updates".
        measure: Returns the rows; what they hold follows from the bench's sizes alone, whatever was measured before.
        rows: How many they are; for the display, where it may be wrong.
    """

    name: str
    measure: Callable[[], Iterable[Row]]
    rows: int = 1


class Shown(Protocol):
    """Who is told how far a bench is."""

    def expect(self, rows: int) -> None:
        """Hear of rows that are to come."""

    def begin(self, name: str) -> None:
        """Hear what is being measured."""

    def end(self, name: str, rows: int, kept: bool) -> None:
        """Hear of rows that were measured, or kept from before."""


class Ledger:
    """Measures all of it; keeps nothing."""

    def each(self, parts: Sequence[Part]) -> Iterator[Row]:
        """Yield the rows of the parts, each as soon as it is measured."""
        for part in parts:
            yield from part.measure()

    def mapped(
        self, fn: Callable[[Job], Result], jobs: Sequence[Job], workers: int, kind: Callable[..., Result]
    ) -> list[Result]:
        """Return [fn(job) for job in jobs], `workers` at a time.

        Args:
            fn: As `processes.mapped` takes it.
            jobs: Its arguments; str(job) is what people read.
            workers: Processes.
            kind: The dataclass of plain values that fn returns.
        """
        return mapped(fn, jobs, workers)


NOTHING_KEPT = Ledger()
