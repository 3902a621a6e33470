"""The numbers that a recursion is differentiated by, side by side as columns, and the seeds that push many at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import is_floating
from loopgrad.gradients.row_layout import RowLayout
from loopgrad.gradients.stepwise import axis_of

_BITS = 62  # of a word


@dataclass(frozen=True)
class Group:
    """The columns of one tensor.

    Attributes:
        source: Its number among `FunctionalCell.sources`.
        shape: Of what an update reads of it.
        per_sample: Whether each row has columns of its own in it, or all rows share them.
        width: How many columns an update reads.
        repeats: How many updates read other columns of it: 1, or the updates of `xs`.
        start: Its first column.
        local: The first of what one update reads.
    """

    source: int
    shape: torch.Size
    per_sample: bool
    width: int
    repeats: int
    start: int
    local: int

    @property
    def lead(self) -> int:
        """How many rows have columns of their own."""
        return self.shape[0] if self.per_sample else 1


class Columns:
    """Columns of everything that requires grad: the initial state, and what the cell reads beside it.

    Args:
        cell: The cell.
        rows: How states are laid out.
        leaves: How many floating leaves the state has, answers that are carried in it left out.
        shared: Whether inputs are taken for shared by all rows even where their first dimension is the batch's.

    Attributes:
        count: Number of columns in all.
        features: Number of features of a row.
        width: Number of those that one update reads.
        of_state: (column, feature) of each column of the initial state, (2, count of those).
    """

    def __init__(self, cell: FunctionalCell, rows: RowLayout, leaves: int, shared: bool = False):
        self.cell, self.rows = cell, rows
        self.of_others: list[Group | None] = []
        sources = cell.sources
        given = len(sources) - len(cell.others)
        self.count, self.width, feature, pairs = 0, 0, 0, []
        self._state: list[Group] = []
        for i, leaf in enumerate(sources[:leaves]):
            size = leaf.numel() // (rows.batch or 1) if rows.batch != 0 else leaf.shape[1:].numel()
            if leaf.requires_grad:
                self._state.append(Group(i, leaf.shape, rows.batch is not None, size, 1, self.count, 0))
                pairs += [(self.count + j, feature + j) for j in range(size)]
                self.count += size
            feature += size
        self.features = feature
        self.of_state = torch.tensor(pairs, dtype=torch.long, device=sources[0].device).reshape(-1, 2).T
        for i, tensor in enumerate(cell.others):
            self.of_others.append(self._group(i, given + i, tensor, shared) if tensor.requires_grad else None)
        groups = [group for group in self.of_others if group is not None]
        at, device = [torch.arange(0)], sources[0].device
        step = [torch.full((self.of_state.shape[1],), -1)]
        at.append(torch.zeros(self.of_state.shape[1], dtype=torch.long))
        for group in groups:
            at.append(torch.arange(group.local, group.local + group.width).repeat(group.repeats))
            several = group.repeats > 1 or self._scanned(group)
            numbers = torch.arange(group.repeats).repeat_interleave(group.width)
            step.append(numbers if several else torch.full((group.width,), -1))
        self.local = torch.cat(at).to(device)  # of each column its number among those that an update reads
        self._step = torch.cat(step).to(device)  # the update that reads it; -1 for all
        self._of_state = torch.zeros(self.count, dtype=torch.bool, device=device)
        self._of_state[self.of_state[0]] = True
        self._any_scanned = bool((self._step >= 0).any())

    def _scanned(self, group: Group) -> bool:
        return group.source - (len(self.cell.sources) - len(self.cell.others)) in self.cell.scanned

    def _group(self, i: int, source: int, tensor: Tensor, shared: bool) -> Group:
        part, repeats = tensor, 1
        if i in self.cell.scanned:
            repeats = tensor.shape[axis_of(tensor, self.cell.axis)]
            part = self.cell.of_updates(tensor, 0, min(1, repeats))
        batch = self.rows.batch
        own = batch is not None and i < self.cell.num_inputs and not shared and part.shape[:1] == (batch,)
        own = own and (i not in self.cell.scanned or axis_of(tensor, self.cell.axis) > 0)
        width = part.shape[1:].numel() if own else part.numel()
        group = Group(source, part.shape, own, width, repeats, self.count, self.width)
        self.count, self.width = self.count + repeats * width, self.width + width
        return group

    def read_at(self, step: int) -> Tensor:
        """Return of each column whether update number `step` reads it."""
        return ~self._of_state & ((self._step < 0) | (self._step == step))

    @property
    def changes(self) -> bool:
        """Whether updates read other columns than one another."""
        return self._any_scanned

    def spread(self, pattern: Tensor) -> Tensor:
        """Return (features, count) of a pattern (features, width) of the columns that one update reads."""
        found = pattern[:, self.local] if self.width else pattern.new_zeros(len(pattern), self.count)
        return found & ~self._of_state

    def seeds(self, colours: Tensor, count: int) -> list[Tensor]:
        """Return for each group tangents (count, *shape): one in the columns of a colour, in all rows; -1 has none."""
        found = []
        for group, tensor in zip(self.of_others, self.cell.others, strict=True):
            if group is None:
                continue
            of_group = colours[group.local : group.local + group.width]
            chosen = (of_group >= 0).nonzero().flatten()
            seed = tensor.new_zeros((count, *group.shape), requires_grad=False)
            seed.view(count, group.lead, group.width)[of_group[chosen], :, chosen] = 1
            found.append(seed)
        return found

    def gradients(self, found: Tensor, reached: Sequence[bool]) -> list[Tensor | None]:
        """Return the gradient of each source, given (rows, count); None where none of its columns is `reached`.

        Args:
            found: Gradient by row and column.
            reached: Of each source, whether the recursion reads it.
        """
        sources = self.cell.sources
        gradients: list[Tensor | None] = [None] * len(sources)
        for group in (*self._state, *(g for g in self.of_others if g is not None)):
            if not reached[group.source]:
                continue
            source = sources[group.source]
            part = found[:, group.start : group.start + group.repeats * group.width]
            part = part if group.per_sample else part.sum(0)
            if self._scanned(group) and group.source >= len(sources) - len(self.cell.others):
                axis = axis_of(source, self.cell.axis)
                rest = source.shape[:axis] + source.shape[axis + 1 :]
                lead = rest[:1] if group.per_sample else ()
                part = part.reshape(*lead, group.repeats, *rest[len(lead) :]).movedim(len(lead), axis)
            gradients[group.source] = part.reshape(source.shape).to(source.dtype)
        return gradients


def colours_of(pattern: Tensor) -> tuple[Tensor, int]:
    """Return a colour for each column of a pattern (features, columns), and how many there are.

    Columns of one colour have no feature in common, so that one tangent pushes them all and each is read off where it
    alone is (Curtis, Powell and Reid 1974); -1 for columns without a feature.
    """
    colours = torch.full(pattern.shape[1:], -1, dtype=torch.long)
    kinds, places = kinds_of(pattern)
    waiting = {i: places[i] for i, kind in enumerate(kinds) if kind.any()}
    count = 0
    while waiting:
        taken, together = torch.zeros(pattern.shape[0], dtype=torch.bool), []
        for i in sorted(waiting, key=lambda i: -len(waiting[i])):
            if not (taken & kinds[i]).any():
                taken |= kinds[i]
                together.append(i)
        least = min(len(waiting[i]) for i in together)
        for i in together:
            colours[waiting[i][:least]] = torch.arange(count, count + least)
            waiting[i] = waiting[i][least:]
            if not len(waiting[i]):
                del waiting[i]
        count += least
    return colours.to(pattern.device), count


def kinds_of(pattern: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the different columns of a pattern as rows, in their order, and the places of each, on the CPU."""
    pattern = pattern.cpu()
    if not pattern.numel():  # columns of no feature are all alike
        return pattern.T[:1], [torch.arange(pattern.shape[1])][: pattern.shape[1]]
    words = []  # bits of columns as numbers that sort as they do
    for rows in pattern.split(_BITS):
        word = rows[0].long()
        for row in rows[1:]:
            word.mul_(2).add_(row)
        words.append(word)
    _, of_column = torch.unique(torch.stack(words, 1), dim=0, return_inverse=True)
    places = list(of_column.argsort(stable=True).split(of_column.bincount().tolist()))
    return pattern.T[torch.stack([own[0] for own in places])], places


def identity_colours(pattern: Tensor) -> tuple[Tensor, int]:
    """Return a colour of its own for each column of a pattern that has a feature, and how many there are."""
    chosen = pattern.any(0)
    return torch.where(chosen, chosen.cumsum(0) - 1, -1), int(chosen.sum())


def noise_like(tensors: Sequence[Any], generator: torch.Generator) -> list[Any]:
    """Return floating tensors moved by standard normal noise, and anything else as it is."""
    return [
        t.detach() + torch.randn(t.shape, dtype=t.dtype, generator=generator).to(t.device) if is_floating(t) else t
        for t in tensors
    ]
