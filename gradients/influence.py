"""What is carried forward in time of dz_t/dp: the influence matrix, whole, masked, or its diagonal part."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients.columns import kinds_of


class Immediate:
    """The immediate influence dF/dp of one update, read off compressed tangents.

    Args:
        tangents: (colours, rows, features).
        colours: (columns,) the colour of each column, -1 for none.
        read: (columns,) whether this update reads the column; None for all that have a colour.
    """

    def __init__(self, tangents: Tensor, colours: Tensor, read: Tensor | None):
        self._tangents, self._colours, self._read = tangents, colours, read

    def part(self, features: Tensor, columns: Tensor, pattern: Tensor) -> Tensor:
        """Return (rows, |features|, |columns|) of some features and columns, zeros where there is no `pattern`."""
        if not len(self._tangents):
            return self._tangents.new_zeros(self._tangents.shape[1], *pattern.shape)
        colours = self._colours[columns]
        read = colours >= 0 if self._read is None else (colours >= 0) & self._read[columns]
        found = self._tangents[colours.clamp(min=0)][:, :, features]  # (columns, rows, features)
        return torch.where(pattern & read, found.permute(1, 2, 0), 0.0)

    def entries(self, features: Tensor, columns: Tensor, pattern: Tensor) -> Tensor:
        """Return (rows, entries), given the feature and the column of each, zeros where there is no `pattern`."""
        if not len(self._tangents):
            return self._tangents.new_zeros(self._tangents.shape[1], len(features))
        colours = self._colours[columns]
        read = colours >= 0 if self._read is None else (colours >= 0) & self._read[columns]
        found = self._tangents.movedim(1, 0)[:, colours.clamp(min=0), features]
        return torch.where(pattern & read, found, 0.0)


@dataclass(frozen=True)
class Block:
    """Columns whose entries are kept in the same features.

    Attributes:
        features: Numbers of these.
        columns: Numbers of the columns.
        pattern: (|features|, |columns|) where the immediate influence may be other than zero.
    """

    features: Tensor
    columns: Tensor
    pattern: Tensor


def blocks_of(kept: Tensor, pattern: Tensor) -> list[Block]:
    """Return the blocks of a mask (features, columns) of what is kept; columns of which nothing is are in none."""
    found = []
    for kind, places in zip(*kinds_of(kept), strict=True):
        features, columns = kind.nonzero().flatten().to(kept.device), places.to(kept.device)
        if len(features):
            found.append(Block(features, columns, pattern[features][:, columns]))
    return found


def reach(pattern: Tensor, of_state: Tensor, steps: int) -> Tensor:
    """Return where an influence may be other than zero after `steps` updates.

    Args:
        pattern: (features, columns) of dF/dp.
        of_state: (features, features) of dF/dz.
        steps: Updates, at least one.
    """
    found, through = pattern, of_state.float()
    for _ in range(steps - 1):
        after = found | (through @ found.float() > 0)
        if torch.equal(after, found):
            break
        found = after
    return found


class Carried(ABC):
    """What an estimator carries in place of J_t = dz_t/dp."""

    @abstractmethod
    def push(self, through: Tensor, immediate: Immediate) -> None:
        """Go to the next update: J <- dF/dz J + dF/dp, or what stands for it; `through` is (rows, n, n)."""

    @abstractmethod
    def read(self, adjoints: Tensor) -> Tensor:
        """Return (rows, m, columns), the products of adjoints (rows, m, features) with J."""

    @property
    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """What it consists of."""

    @abstractmethod
    def holding(self, tensors: list[Tensor]) -> "Carried":
        """Return the same of other tensors, as autograd has kept them."""

    def check(self, owner: str, bound: float) -> None:
        """Raise RuntimeError if the updates were not as what is carried needs them; called after the last one."""
        return None


class Traces(Carried):
    """Entries of J that depend on themselves alone from update to update: J_ip <- (dF/dz)_ii J_ip + (dF/dp)_ip.

    Args:
        features: i of each.
        columns: p of each.
        pattern: Of each, whether its immediate influence may be other than zero.
        values: (rows, entries).
        count: Number of columns in all.
    """

    def __init__(self, features: Tensor, columns: Tensor, pattern: Tensor, values: Tensor, count: int):
        self.features, self.columns, self.pattern = features, columns, pattern
        self.values, self.count = values, count

    @classmethod
    def start(cls, kept: Tensor, pattern: Tensor, first: Tensor, like: Tensor) -> "Traces":
        """Return those of the initial state: see `Influence.start`."""
        features, columns = kept.nonzero().unbind(1)
        values = _identity(kept, first)[features, columns].to(like.dtype).expand(len(like), -1).clone()
        return cls(features, columns, pattern[features, columns], values, kept.shape[1])

    def push(self, through: Tensor, immediate: Immediate) -> None:
        """Push each by its own derivative."""
        pushed = through.diagonal(dim1=1, dim2=2)[:, self.features] * self.values
        self.values = pushed.add_(immediate.entries(self.features, self.columns, self.pattern))

    def read(self, adjoints: Tensor) -> Tensor:
        """Return the products with J."""
        found = adjoints.new_zeros(*adjoints.shape[:2], self.count)
        return found.index_add_(2, self.columns, adjoints[:, :, self.features] * self.values.unsqueeze(1))

    @property
    def tensors(self) -> list[Tensor]:
        """The values."""
        return [self.values]

    def holding(self, tensors: list[Tensor]) -> "Traces":
        """Return the same with other values."""
        return Traces(self.features, self.columns, self.pattern, tensors[0], self.count)


class Influence(Carried):
    """The influence matrix J (rows, features, columns), as far as a mask keeps it.

    Args:
        blocks: Of the mask, of columns that are kept in several features.
        values: Of each block (rows, |features|, |columns|).
        traces: Of columns that are kept in one feature, which depend on themselves alone.
    """

    def __init__(self, blocks: list[Block], values: list[Tensor], traces: Traces):
        self.blocks, self.values, self.traces = blocks, values, traces

    @classmethod
    def start(cls, kept: Tensor, pattern: Tensor, first: Tensor, like: Tensor) -> "Influence":
        """Return that of the initial state.

        Args:
            kept: (features, columns) the mask.
            pattern: (features, columns) of dF/dp.
            first: (column, feature) of each column of the initial state, whose influence on it is the identity.
            like: (rows, ...) of its dtype and device.
        """
        single = kept.sum(0) == 1
        blocks, values, identity = blocks_of(kept & ~single, pattern), [], _identity(kept, first)
        for block in blocks:
            value = identity[block.features][:, block.columns].to(like.dtype)
            values.append(value.expand(len(like), *value.shape).clone())
        return cls(blocks, values, Traces.start(kept & single, pattern, first, like))

    def push(self, through: Tensor, immediate: Immediate) -> None:
        """J <- dF/dz J + dF/dp, where entries are kept."""
        self.traces.push(through, immediate)
        for i, block in enumerate(self.blocks):
            pushed = through[:, block.features][:, :, block.features] @ self.values[i]
            self.values[i] = pushed.add_(immediate.part(block.features, block.columns, block.pattern))

    def read(self, adjoints: Tensor) -> Tensor:
        """Return the products with J."""
        found = self.traces.read(adjoints)
        for block, value in zip(self.blocks, self.values, strict=True):
            found[:, :, block.columns] = adjoints[:, :, block.features] @ value
        return found

    @property
    def tensors(self) -> list[Tensor]:
        """The values of the blocks, and the traces."""
        return [*self.values, *self.traces.tensors]

    def holding(self, tensors: list[Tensor]) -> "Influence":
        """Return the same with other values."""
        return Influence(self.blocks, tensors[:-1], self.traces.holding(tensors[-1:]))


def precisely(like: Tensor) -> AbstractContextManager[Any]:
    """Return a block whose products autocast leaves in the precision of what is carried."""
    return torch.autocast(like.device.type, enabled=False)


def _identity(kept: Tensor, first: Tensor) -> Tensor:
    """Return ones where a column of the initial state is its own feature, like a mask (features, columns)."""
    identity = torch.zeros_like(kept)
    identity[first[1], first[0]] = True
    return identity
