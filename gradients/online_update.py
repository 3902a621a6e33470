"""The derivatives of one update, and of the readout after it: many tangents at once, read off and checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients.columns import Columns
from loopgrad.gradients.graphs import check_nothing_hidden, is_floating, merged, next_number
from loopgrad.gradients.influence import Immediate, precisely
from loopgrad.gradients.row_layout import RowLayout
from loopgrad.gradients.tangents import Carrying, join_tangents, pushed, split_tangents, without_graph

LONGER, ROUNDINGS = 3.0, 4.0


@dataclass
class Pushed:
    """What a map of state and columns gives, and its derivatives.

    Attributes:
        leaves: What it returns.
        through: (rows, outputs, features) by the state.
        immediate: By the columns.
        tangents: (colours, rows, outputs) as they were pushed.
        check: (rows, outputs), along the random direction.
        noise: Largest error of rounding in it, as far as it was asked for.
    """

    leaves: list[Any]
    through: Tensor
    immediate: Immediate
    tangents: Tensor
    check: Tensor
    noise: Tensor | None


class Pushing:
    """Pushes the identity of the state, the colours of the columns and one random direction through a map.

    The random direction is what the others must add up to. It tells where a pattern is not that of this update, or a
    row depends on another.

    Args:
        columns: The columns.
        pattern: (outputs, width) where the map may depend on a column.
        colours: (width,) their colours, and how many there are.
        generator: Draws the direction.
        careful: Whether the direction is pushed once more, three times as long. The two differ by rounding alone, and
            that may be all there is to see: of a loss near 0, say, whose derivative is a difference of numbers near 1.
    """

    def __init__(
        self,
        columns: Columns,
        pattern: Tensor,
        colours: tuple[Tensor, int],
        generator: torch.Generator,
        careful: bool = False,
    ):
        self.columns, self.pattern, self.careful = columns, pattern, careful
        of_local, self.count = colours
        self._of_local = of_local
        every = of_local[columns.local] if columns.width else of_local.new_full((columns.count,), -1)
        every[columns.of_state[0]] = -1
        self.colours, rows, width = every, columns.rows, columns.features
        batch, device = rows.batch if rows.batch is not None else 1, self.colours.device
        self.direction = torch.randn(batch, width, dtype=rows.dtype, generator=generator).to(device)
        seeds, own = columns.seeds(of_local, self.count), []
        groups = [group for group in columns.of_others if group is not None]
        self.seeds: list[Tensor] = []
        for group, seed in zip(groups, seeds, strict=True):
            drawn = torch.randn(group.shape, dtype=rows.dtype, generator=generator).to(device)
            own.append(drawn.reshape(group.lead, group.width).expand(batch, group.width))
            still = seed.new_zeros(width, *group.shape)
            again = [(LONGER * drawn).to(seed.dtype).unsqueeze(0)] * careful
            self.seeds.append(torch.cat([still, seed, drawn.to(seed.dtype).unsqueeze(0), *again]))
        identity = torch.eye(width, dtype=rows.dtype, device=device).unsqueeze(1).expand(width, batch, width)
        colour = identity.new_zeros(self.count, batch, width)
        again = [LONGER * self.direction.unsqueeze(0)] * careful
        self.state = torch.cat([identity, colour, self.direction.unsqueeze(0), *again])
        self._shown = self._owners(torch.cat(own, 1) if own else identity.new_zeros(batch, 0))

    def _owners(self, drawn: Tensor) -> Tensor:
        """Return (colours, rows, outputs) what the direction has in the column that each tangent shows there."""
        found = drawn.new_zeros(self.count, len(drawn), len(self.pattern))
        output, column = (self.pattern & (self._of_local >= 0)).nonzero().unbind(1)
        found[self._of_local[column], :, output] = drawn[:, column].T
        return found

    def __call__(
        self, fn: Callable[[list, list], list], leaves: Sequence[Any], others: Sequence[Tensor], layout: Any, step: int
    ) -> Pushed:
        """Return what fn(leaves, others) gives with its derivatives.

        Args:
            fn: Returns leaves.
            leaves: Of the state.
            others: In place of the cell's other tensors, what this update reads of them.
            layout: Gives the `RowLayout` of what fn returns.
            step: Number of the update.
        """
        moving = [i for i, group in enumerate(self.columns.of_others) if group is not None]
        still = [t for t, group in zip(self.columns.cell.others, self.columns.of_others, strict=True) if group is None]
        leaves, others, after = list(map(without_graph, leaves)), list(map(without_graph, others)), []
        floating, since = list(filter(is_floating, leaves)), next_number()

        def update(state: list, moved: list) -> Any:
            read = list(others)
            for i, tensor in zip(moving, moved, strict=True):
                read[i] = tensor
            after[:] = fn(merged(state, leaves), read)
            return list(filter(is_floating, after)), [leaf for leaf in after if _is_carried(leaf)]

        tangents = split_tangents(self.state, floating)
        with Carrying(self.columns.cell.cell):
            found, along, carried = pushed(update, floating, [others[i] for i in moving], tangents, self.seeds)
        check_nothing_hidden(found, still, since)
        queue, found = iter(carried), [leaf.detach() for leaf in found]
        every = merged(found, [next(queue) if _is_carried(leaf) else leaf for leaf in after])
        rows: RowLayout | None = layout(every)
        if rows is None:
            empty = self.state.new_zeros(len(self.state), self.state.shape[1], 0)
        else:
            empty = join_tangents(along, rows).detach().to(self.state.dtype)  # as of a float64 loss
        width = self.columns.features
        through, of_columns, check, again = empty.split([width, self.count, 1, int(self.careful)])
        noise = (again[0] / LONGER - check[0]).abs().max() if again.numel() else None
        read = self.columns.read_at(step) if self.columns.changes else None
        immediate = Immediate(of_columns, self.colours, read)
        return Pushed(every, through.permute(1, 2, 0), immediate, of_columns, check[0], noise)

    def off(self, known: Pushed) -> Tensor:
        """Return how far the random direction is from what the others add up to, relative to its size."""
        check = known.check
        if not check.numel():
            return check.new_zeros(())
        with precisely(check):
            summed = torch.einsum("rij,rj->ri", known.through, self.direction)
        if self.count:
            summed = summed + (self._shown * known.tangents).sum(0)
        apart = (summed - check).abs().max()
        off = apart / (summed.abs().max() + check.abs().max())
        if known.noise is not None:  # of each of the terms that were added up
            off = torch.where(apart > ROUNDINGS * len(self.state) ** 0.5 * known.noise, off, 0.0)
        return torch.where(off.isfinite(), off, 0.0)  # 0 / 0; and what overflows is no matter of patterns


def _is_carried(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not is_floating(leaf)
