"""What `loopgrad bench` asks of a bench."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger
from loopgrad.gradients.checks import is_int


@dataclass(frozen=True, kw_only=True)
class Bench(ABC):
    """A set of measurements; a frozen dataclass of sizes.

    Args:
        repeats: Timed rounds; not used where nothing is timed.
        num_threads: Threads of torch.

    Attributes:
        least: Least values of its numbers, and of those in its lists, that are not 1; real ones are above 0.
        may_be_empty: Its lists that may.

    Raises:
        ValueError: A number is smaller, or a list is empty.
    """

    repeats: int = 1
    num_threads: int = 1

    least: ClassVar[Mapping[str, int]] = {}
    may_be_empty: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = {"seed": 0, "seeds": 0, **self.least}.get(name, 1)
            values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
            if not values and name not in self.may_be_empty:
                raise ValueError(f"{name}=[] must hold at least one")
            for it in values:
                if is_int(it) and it < least:
                    raise ValueError(f"{name}={value} must be at least {least}")
                if isinstance(it, float) and not 0 < it < math.inf:
                    raise ValueError(f"{name}={value} must be finite and above 0")

    @abstractmethod
    def rows(self, ledger: Ledger = NOTHING_KEPT) -> Iterable[dict[str, Any]]:
        """Measure; return one dict per contestant, all with the same keys; lists are recorded and not printed.

        Rows that are yielded one by one are each in the record, and printed, as soon as they are measured.

        Args:
            ledger: What goes through its `each` and `mapped` is shown as it ends, kept on the disk and not measured
                again where the command goes on. A part holds what can only be measured together, such as times that
                are ratios of one another, and draws nothing from what was measured before it.
        """

    def place(self) -> torch.device:
        """Return the device that is measured on."""
        return torch.zeros(()).device

    def figures(self, rows: list[dict[str, Any]], folder: Path) -> None:  # noqa: B027
        """Draw the rows into a folder, where a bench has a figure."""

    def text(self, rows: list[dict[str, Any]]) -> str:
        """Say what the rows say, where a bench has a text under its table."""
        return ""
