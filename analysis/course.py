"""The course of a run: each update is measured when it is made, and at the end the rows are cut into episodes.

An episode is what one sample went through from its initial state on; under adaptive halting a batch holds several.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from loopgrad.analysis.streams import Distance, Ends, Scalars, Slot, counted, equal_rows, version
from loopgrad.analysis.summaries import Array
from loopgrad.gradients.checks import is_int

Span = tuple[int, int, int, int]  # number of updates, updates made before, number of the start, row


class Episodes(NamedTuple):
    """Episodes of one length: their rows in the batch, the updates made before each, and what was measured.

    `found` is by (kind, stream), its arrays (time, episodes). `position` is that of each in its row, None where rows
    are whole samples.
    """

    num_steps: int
    row: Array
    position: Array | None
    begin: Array
    found: dict[tuple[str, str], Array]


class Course:
    """Measures each update on the device; holds period + 1 states, and one per lag.

    Each end of a cycle is compared with `lags` earlier ones; differences and norms are in `upcast` or wider. Leaves are
    (batch, ...); with more `axes` than one (batch, *positions, ...), and each position is measured by itself.
    """

    def __init__(self, names: Sequence[str], period: int, lags: int, upcast: torch.dtype, axes: int = 1):
        self.names, self.period, self.lags = tuple(names), period, lags
        self.scalars, self.num_steps = Scalars(upcast), 0
        self._axes, self._distance = axes, Distance(upcast, axes)
        self._ends, self._cycles = Ends(self.scalars, self.names, lags, self._distance, axes), 0
        self._starts: list[_Start] = []
        self._recent: deque[_Held] = deque(maxlen=period + 1)
        self._norms: list[Slot] = []
        self._apart: dict[str, tuple[torch.Tensor, torch.Tensor, Slot]] = {}
        self._into_cycle, self._some_done = 0, False

    @property
    def leaves(self) -> list[torch.Tensor]:
        """The latest state; none before the first start."""
        return self._recent[-1].leaves if self._recent else []

    @property
    def positions(self) -> int:
        """How many positions a sample has; 1 where they are not measured one by one."""
        return self.leaves[0].shape[1 : self._axes].numel()

    def start(self, leaves: Sequence[torch.Tensor]) -> None:
        """Go on from these leaves: a row that they hold in the same values goes on, another begins an episode."""
        held, anew = _Held.of(leaves), not self._starts or self._into_cycle != 0
        number = len(self._starts)
        if not anew:
            same = all(map(_same_memory, held.leaves, self.leaves)) and not self._recent[-1].written()
            if same and not self._some_done:
                return
            self._check_held(self._recent[-1])
            for name, leaf, before in zip(self.names, held.leaves, self.leaves, strict=True):
                self.scalars.add(("goes on", name), number, self._of_all_positions(equal_rows(leaf, before)))
            self._recent.pop()
        else:
            self._recent.clear()
        self._into_cycle = 0
        self._starts.append(_Start(self.num_steps, self._cycles))
        self._recent.append(held)
        self._apart.clear()
        self._ends.start(held.leaves, anew)
        self._norms = [
            self.scalars.add(("start", name), number, self._distance(leaf, None))
            for name, leaf in zip(self.names, held.leaves, strict=True)
        ]

    def update(self, leaves: Sequence[torch.Tensor | None], going: torch.Tensor | None = None) -> None:
        """Measure an update to these leaves; None for one that it handed on.

        Args:
            leaves: The state that it led to.
            going: (batch,) bool, the samples that it is one of; None for all. A sample that is done makes no more of
                them until the next start, and there begins an episode.
        """
        before, time = self._recent[-1], self.num_steps
        self._check_held(before)
        self._some_done = going is not None
        if going is not None:
            self.scalars.add(("going", self.names[0]), time, self._of_all_positions(going))
        held = _Held.of([old if new is None else new for new, old in zip(leaves, before.leaves, strict=True)])
        self._recent.append(held)
        self.num_steps, self._into_cycle = time + 1, (self._into_cycle + 1) % self.period
        earlier = self._recent[0] if len(self._recent) > self.period else None
        if earlier is not None:
            self._check_held(earlier)
        for i, (name, leaf) in enumerate(zip(self.names, held.leaves, strict=True)):
            moved = None
            if leaves[i] is None:
                self.scalars.again(("norm", name), time, self._norms[i])
            else:
                moved = self.scalars.add(("update", name), time, self._distance(leaf, before.leaves[i]))
                self._norms[i] = self.scalars.add(("norm", name), time, self._distance(leaf, None))
            if earlier is not None:
                self._measure_cycle(name, time, leaf, earlier.leaves[i], moved)
        if self._into_cycle == 0:
            self._ends.add(self._cycles, held.leaves)
            self._cycles += 1

    def episodes(self) -> list[Episodes]:
        """Transfer what was measured and return the episodes by length, the longest first, in order of beginning."""
        rows = self.leaves[0].shape[: self._axes].numel()
        count = len(self._starts)
        lengths = {"norm": self.num_steps, "update": self.num_steps, "cycle": self.num_steps, "going": self.num_steps}
        lengths |= {"start": count, "goes on": count} | self._ends.lengths(self._cycles)
        found = self.scalars.arrays(lengths, self.names, rows)
        goes_on = np.logical_and.reduce([found.pop(("goes on", name)) == 1 for name in self.names])
        done = np.logical_or.reduce([found.pop(("going", name)) == 0 for name in self.names])
        for k, start in enumerate(self._starts):
            goes_on[k] &= ~done[start.num_steps - 1] if start.num_steps else True
        spans: list[Span] = []
        for row in range(rows):
            begun = np.flatnonzero(~goes_on[:, row])
            edges = [*(self._starts[k].num_steps for k in begun), self.num_steps]
            for i, k in enumerate(begun):
                still = np.flatnonzero(done[edges[i] : edges[i + 1], row])
                spans.append((int(still[0]) if still.size else edges[i + 1] - edges[i], edges[i], int(k), row))
        kept = sorted({span[0] for span in spans if span[0] or not self.num_steps}, reverse=True)
        kept = kept or [0 if rows else self.num_steps]
        return [self._cut(found, length, sorted(s for s in spans if s[0] == length)) for length in kept]

    def _cut(self, found: dict[tuple[str, str], Array], length: int, spans: list[Span]) -> Episodes:
        _, begin, number, row = np.array(spans, dtype=int).reshape(-1, 4).T
        updates = begin + np.arange(length)[:, None]
        done = np.array([self._starts[k].cycles for k in number], dtype=int)
        cycles = done + np.arange(length // self.period)[:, None]
        cut: dict[tuple[str, str], Array] = {}
        for (kind, name), values in found.items():
            if kind == "start":
                continue
            if kind == "norm":
                cut[kind, name] = np.concatenate([found["start", name][number, row][None], values[updates, row]])
                continue
            part = cut[kind, name] = values[updates if kind in ("update", "cycle") else cycles, row]
            # compared with a state before the episode
            unknown = {"update": 0, "cycle": self.period - 1, "turning": 1}
            part[: unknown[kind] if kind in unknown else int(kind.removeprefix("lag ")) - 1] = np.nan
        if self._axes == 1:
            return Episodes(length, row, None, begin, cut)
        return Episodes(length, row // self.positions, row % self.positions, begin, cut)

    def _of_all_positions(self, values: torch.Tensor) -> torch.Tensor:
        """Return what holds of samples, (batch,), for each row."""
        return values if self._axes == 1 else values.repeat_interleave(self.positions)

    def _measure_cycle(
        self, name: str, time: int, leaf: torch.Tensor, earlier: torch.Tensor, moved: Slot | None
    ) -> None:
        if self.period == 1 and moved is not None:
            return self.scalars.again(("cycle", name), time, moved)
        # a stream that waits for the others is as far from where it waited a cycle before as it was
        known = self._apart.get(name)
        if known is not None and known[0] is leaf and known[1] is earlier:
            return self.scalars.again(("cycle", name), time, known[2])
        slot = self.scalars.add(("cycle", name), time, self._distance(leaf, earlier))
        self._apart[name] = leaf, earlier, slot

    def _check_held(self, held: "_Held") -> None:
        if held.written():
            raise ValueError(
                f"a state was changed in place after it was recorded, by update {self.num_steps} of "
                f"{list(self.names)} or between: write z + f(z) instead of z.add_(f(z)), or record copies"
            )


class _Start(NamedTuple):
    """How many updates and cycles had been made."""

    num_steps: int
    cycles: int


class _Held(NamedTuple):
    """Leaves without their graph, and how often each had been written in place; copies under inference mode."""

    leaves: list[torch.Tensor]
    versions: list[int]

    @classmethod
    def of(cls, leaves: Sequence[torch.Tensor]) -> "_Held":
        leaves = [counted(leaf.detach() if leaf.requires_grad else leaf) for leaf in leaves]
        return cls(leaves, [version(leaf) for leaf in leaves])

    def written(self) -> bool:
        return [version(leaf) for leaf in self.leaves] != self.versions


def _same_memory(leaf: torch.Tensor, other: torch.Tensor) -> bool:
    same = leaf.dtype == other.dtype and leaf.shape == other.shape and leaf.stride() == other.stride()
    return same and leaf.device == other.device and leaf.data_ptr() == other.data_ptr()


def check_options(lags: Any, upcast: Any) -> None:
    """Raise ValueError where lags is not a number of cycles, TypeError where upcast is narrower than float32."""
    if not is_int(lags, 0):
        raise ValueError(f"lags must be a number of cycles, an int of at least 0, got {lags!r}")
    if upcast not in (torch.float32, torch.float64):
        raise TypeError(f"upcast must be torch.float32 or torch.float64, got {upcast}: narrower sums lose residuals")
