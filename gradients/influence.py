"""What is carried forward in time of dz_t/dp: the influence matrix, whole or masked, or one random rank of it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


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
    kinds, of_column = torch.unique(kept.T, dim=0, return_inverse=True)
    found = []
    for i, kind in enumerate(kinds):
        features, columns = kind.nonzero().flatten(), (of_column == i).nonzero().flatten()
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


class Influence(Carried):
    """The influence matrix J (rows, features, columns), as far as a mask keeps it.

    Args:
        blocks: Of the mask.
        values: Of each block (rows, |features|, |columns|).
        columns: How many there are in all.
        diagonal: Whether dF/dz is taken for its diagonal.
    """

    def __init__(self, blocks: list[Block], values: list[Tensor], columns: int, diagonal: bool = False):
        self.blocks, self.values, self.columns, self.diagonal = blocks, values, columns, diagonal

    @classmethod
    def start(cls, kept: Tensor, pattern: Tensor, first: Tensor, like: Tensor, diagonal: bool = False) -> "Influence":
        """Return that of the initial state.

        Args:
            kept: (features, columns) the mask.
            pattern: (features, columns) of dF/dp.
            first: (column, feature) of each column of the initial state, whose influence on it is the identity.
            like: (rows, ...) of its dtype and device.
            diagonal: Whether dF/dz is taken for its diagonal.
        """
        blocks, values = blocks_of(kept, pattern), []
        identity = torch.zeros_like(kept)
        identity[first[1], first[0]] = True
        for block in blocks:
            value = identity[block.features][:, block.columns].to(like.dtype)
            values.append(value.expand(len(like), *value.shape).clone())
        return cls(blocks, values, kept.shape[1], diagonal)

    def push(self, through: Tensor, immediate: Immediate) -> None:
        """J <- dF/dz J + dF/dp, where entries are kept."""
        diagonal = through.diagonal(dim1=1, dim2=2)
        for i, block in enumerate(self.blocks):
            if self.diagonal:
                pushed = diagonal[:, block.features, None] * self.values[i]
            else:
                pushed = through[:, block.features][:, :, block.features] @ self.values[i]
            self.values[i] = pushed.add_(immediate.part(block.features, block.columns, block.pattern))

    def read(self, adjoints: Tensor) -> Tensor:
        """Return the products with J."""
        found = adjoints.new_zeros(*adjoints.shape[:2], self.columns)
        for block, value in zip(self.blocks, self.values, strict=True):
            found[:, :, block.columns] = adjoints[:, :, block.features] @ value
        return found

    @property
    def tensors(self) -> list[Tensor]:
        """The values of the blocks."""
        return self.values

    def holding(self, tensors: list[Tensor]) -> "Influence":
        """Return the same with other values."""
        return Influence(self.blocks, tensors, self.columns, self.diagonal)


class RankOne(Carried):
    r"""A random s theta^T with mean J: s <- rho_0 dF/dz s + rho_1 nu, theta <- theta / rho_0 + nu^T dF/dp / rho_1.

    nu is random signs, rho_0 = sqrt(|theta| / |dF/dz s|), rho_1 = sqrt(|nu^T dF/dp| / |nu|), each for a row of its own
    (Tallec and Ollivier 2018).

    Args:
        blocks: Of the immediate influence.
        state: s, (rows, features).
        trace: theta, (rows, columns).
        generator: Draws nu.
    """

    def __init__(self, blocks: list[Block], state: Tensor, trace: Tensor, generator: torch.Generator):
        self.blocks, self.state, self.trace, self.generator = blocks, state, trace, generator

    @classmethod
    def start(cls, pattern: Tensor, first: Tensor, like: Tensor, generator: torch.Generator) -> "RankOne":
        """Return that of the initial state, whose influence on itself is the identity: see `Influence.start`."""
        trace = like.new_zeros(len(like), pattern.shape[1])
        found = cls(blocks_of(pattern, pattern), torch.zeros_like(like), trace, generator)
        if first.shape[1]:
            found.state[:, first[1]] = found._signs()[:, first[1]]
            trace[:, first[0]] = found.state[:, first[1]]
        return found

    def _signs(self) -> Tensor:
        drawn = torch.empty(self.state.shape, dtype=self.state.dtype).bernoulli_(0.5, generator=self.generator)
        return drawn.mul_(2).sub_(1).to(self.state.device)

    def push(self, through: Tensor, immediate: Immediate) -> None:
        """Push s, and take in the immediate influence of a fresh nu."""
        nu, fresh = self._signs(), torch.zeros_like(self.trace)
        for block in self.blocks:
            part = immediate.part(block.features, block.columns, block.pattern)
            fresh[:, block.columns] = torch.einsum("ri,rik->rk", nu[:, block.features], part)
        pushed = torch.einsum("rij,rj->ri", through, self.state)
        old, new = _root(self.trace, pushed), _root(fresh, nu)
        self.state, self.trace = old * pushed + new * nu, self.trace / old + fresh / new

    def read(self, adjoints: Tensor) -> Tensor:
        """Return (adjoint . s) theta."""
        return torch.einsum("rmi,ri,rk->rmk", adjoints, self.state, self.trace)

    @property
    def tensors(self) -> list[Tensor]:
        """The two, s and theta."""
        return [self.state, self.trace]

    def holding(self, tensors: list[Tensor]) -> "RankOne":
        """Return the same with another s and theta."""
        state, trace = tensors
        return RankOne(self.blocks, state, trace, self.generator)


def _root(a: Tensor, b: Tensor) -> Tensor:
    """Return sqrt(|a| / |b|) by row, and 1 where there is nothing to scale."""
    ratio = a.norm(dim=1, keepdim=True) / b.norm(dim=1, keepdim=True)
    return torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0).sqrt()
