"""What `loopgrad bench` asks of a bench."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Bench(ABC):
    """A set of measurements; a frozen dataclass of sizes.

    Args:
        repeats: Timed rounds; not used where nothing is timed.
        num_threads: Threads of torch.
    """

    repeats: int = 1
    num_threads: int = 1

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """Measure; return one dict per contestant, all with the same keys; lists are recorded and not printed."""

    def figures(self, rows: list[dict[str, Any]], folder: Path) -> None:  # noqa: B027
        """Draw the rows into a folder, where a bench has a figure."""

    def text(self, rows: list[dict[str, Any]]) -> str:
        """Say what the rows say, where a bench has a text under its table."""
        return ""
