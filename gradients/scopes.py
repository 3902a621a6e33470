"""Which updates of a recursion carry the gradient, where these are not simply the last ones."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from loopgrad.gradients.checks import check_int, is_number
from loopgrad.gradients.noise import check_seed, common_seed, generator_of


class Scope(ABC):
    """A set of updates that carry the gradient, for `TruncatedBPTT(scope=...)`; a frozen dataclass.

    An update that does not carry it runs without a graph: what it changes is a constant, and what it hands through
    keeps the gradient that it has.

    Attributes:
        by_stream: Whether it must know which leaves of the state each update of a cycle changes.
        generator: What its updates are drawn from, on which processes that share a cell must agree; None if not drawn.
    """

    by_stream: bool = False
    generator: torch.Generator | None = None

    @abstractmethod
    def updates(self, num_steps: int, changed: Sequence[frozenset[str]]) -> frozenset[int]:
        """Return the numbers of the updates that carry the gradient.

        Args:
            num_steps: Number of updates T.
            changed: For each update of a cycle the names of the leaves that it changes, such as {"z_H"}; empty sets,
                one per update of a cycle, if not `by_stream`.
        """


@dataclass(frozen=True)
class LastOf(Scope):
    """The last updates of each stream, so many of each.

    The code of HRM-Text (sapientinc/HRM-Text) counts its b backward steps so: LastOf({"z_H": h, "z_L": b - h}) with
    h = min(H_cycles, b - 1).

    Args:
        counts: By the name of a leaf of the state, such as "z_H", or "0" for the first of a tuple, how many of the last
            updates that change it carry the gradient. Leaves that are not named carry none.

    Raises:
        ValueError: A count is below 0, or there is none above 0; at a call: the state has no leaf of such a name.

    Example:
        >>> from loopgrad.gradients import LastOf
        >>> sorted(LastOf({"z_H": 1, "z_L": 2}).updates(6, [frozenset({"z_L"})] * 2 + [frozenset({"z_H"})]))
        [3, 4, 5]
    """

    counts: Mapping[str, int]

    by_stream = True

    def __post_init__(self) -> None:
        for name, count in self.counts.items():
            check_int("LastOf", f"counts[{name!r}]", count, 0)
        if not any(self.counts.values()):
            raise ValueError(f"LastOf(counts={dict(self.counts)}) names no update: one count must be at least 1")

    def updates(self, num_steps: int, changed: Sequence[frozenset[str]]) -> frozenset[int]:
        """Return the last updates that change each stream."""
        names = frozenset().union(*changed)
        if unknown := [name for name in self.counts if name not in names]:
            raise ValueError(
                f"LastOf(counts=...): no update changes a leaf named {unknown[0]!r}; "
                f"there is: {', '.join(sorted(names))}"
            )
        found: set[int] = set()
        for name, count in self.counts.items():
            own = [step for step in range(num_steps) if name in changed[step % len(changed)]]
            found |= set(own[max(0, len(own) - count) :])
        return frozenset(found)


@dataclass(frozen=True)
class BackwardSteps(Scope):
    """So many last updates in all: of one stream as many as it has, of the other the rest, and at least one.

    HRM-Text counts its backward steps so: LastOf({first: h, then: steps - h}) with h = min(updates of `first`, steps -
    1).

    Args:
        steps: Updates that carry the gradient, at least 2.
        first: Name of the leaf of the state whose updates come first.
        then: Name of the leaf that gets what is left.

    Reference:
        Wang et al. 2026, arXiv 2605.20613, whose code counts so.

    Raises:
        ValueError: steps is below 2; at a call: the state has no leaf of such a name.
    """

    references: ClassVar[tuple[str, ...]] = ("wang2026hrm",)

    steps: int
    first: str = "z_H"
    then: str = "z_L"

    by_stream = True

    def __post_init__(self) -> None:
        check_int("BackwardSteps", "steps", self.steps, 2)

    def updates(self, num_steps: int, changed: Sequence[frozenset[str]]) -> frozenset[int]:
        """Return the last updates of each."""
        most = sum(self.first in changed[step % len(changed)] for step in range(num_steps))
        of_first = min(most, self.steps - 1)
        return LastOf({self.first: of_first, self.then: self.steps - of_first}).updates(num_steps, changed)


@dataclass(frozen=True)
class EveryCycle(Scope):
    """All updates of every k-th cycle, the last cycle among them.

    Args:
        k: At least 1; with 1 all updates carry the gradient.
    """

    k: int

    def __post_init__(self) -> None:
        check_int("EveryCycle", "k", self.k, 1)

    def updates(self, num_steps: int, changed: Sequence[frozenset[str]]) -> frozenset[int]:
        """Return the updates of those cycles; a last cycle may be cut short."""
        period = len(changed)
        last = (num_steps - 1) // period
        return frozenset(step for step in range(num_steps) if (last - step // period) % self.k == 0)


@dataclass(frozen=True)
class RandomUpdates(Scope):
    """Each update with a chance of its own, and the last cycle in any case; drawn anew at each call.

    Processes that train together draw the same ones from the same seed; those that share a cell (`fully_shard`, tensor
    parallelism) agree on those of the first.

    Args:
        chance: In (0, 1], of an update to carry the gradient: one less the probability that it is detached.
        seed: Seed of the draws; None starts from the system's entropy.

    Reference:
        Hakimi 2026, arXiv 2603.15641, whose code (RSM) detaches at random.
    """

    references: ClassVar[tuple[str, ...]] = ("hakimi2026form",)

    chance: float
    seed: int | None = None
    generator: torch.Generator = field(default=None, repr=False, compare=False, kw_only=True)  # pyright: ignore

    def __post_init__(self) -> None:
        if not is_number(self.chance) or not 0 < self.chance <= 1:
            raise ValueError(f"RandomUpdates(chance={self.chance!r}) must be in (0, 1]")
        check_seed("RandomUpdates", self.seed)
        object.__setattr__(self, "generator", generator_of(self.seed, self.generator))

    def updates(self, num_steps: int, changed: Sequence[frozenset[str]]) -> frozenset[int]:
        """Draw the updates."""
        draws = torch.rand(num_steps, generator=torch.Generator().manual_seed(common_seed(self.generator)))
        chosen = (draws < self.chance).tolist()
        return frozenset(step for step in range(num_steps) if chosen[step] or step >= num_steps - len(changed))
