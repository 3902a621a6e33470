"""What `loopgrad bench` asks of a bench."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable


class Bench(Protocol):
    """A set of measurements; a frozen dataclass of sizes."""

    repeats: int
    num_threads: int

    def rows(self) -> list[dict[str, Any]]:
        """Measure; return one dict per contestant, all with the same keys; lists are recorded and not printed."""
        ...


@runtime_checkable
class Drawn(Protocol):
    """A bench with a figure."""

    def figures(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Draw its rows into a folder."""
        ...


@runtime_checkable
class Told(Protocol):
    """A bench with a text under its table."""

    def text(self, rows: list[dict[str, Any]]) -> str:
        """Say what the rows say."""
        ...
