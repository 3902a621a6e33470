"""All updates of a recursion at once: their times are folded into the batch, and the cell is called on that."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.gradients import tree
from loopgrad.gradients.batch_first import BatchFirst
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import is_floating
from loopgrad.gradients.row_layout import RowLayout
from loopgrad.gradients.stepwise import Steps, Stepwise


class SideBySide:
    """The updates 0..T-1 of a cell as one map of T states, which do not wait for one another.

    Updates with the same place in a cycle are one call of the cell, on a batch of as many samples as there are samples
    and such updates; it is told the number of the first. Inputs whose first dimension is the batch are repeated for
    each update, others are shared.

    Args:
        cell: The cell, with the batch in dimension 0.
        num_steps: T.
        owner: The estimator, for what is refused.

    Attributes:
        period: Calls of the cell for all updates.
        batch: Samples.
        rows: How a state is laid out.

    Raises:
        ValueError: A leaf of the state is no floating tensor or has no batch; an x_t has none.
    """

    def __init__(self, cell: FunctionalCell, num_steps: int, owner: str):
        self.cell, self.num_steps, self.owner = cell, num_steps, owner
        self.period = min(period_of(cell.cell), num_steps)
        self._check_state()
        self.rows = RowLayout(cell.state, True)
        self.batch: int = self.rows.batch  # pyright: ignore[reportAttributeAccessIssue]
        self._layouts: dict[int, RowLayout] = {}
        for i in cell.scanned:
            shape = tuple(cell.others[i].shape)
            if shape[:1] != (self.batch,) or len(shape) < 2:
                raise ValueError(
                    f"{owner} runs updates as further samples, and a leaf of xs has no batch: give every leaf the "
                    f"shape ({num_steps}, {self.batch}, ...), expanded if samples share it, or use BPTT()"
                )
        order = torch.cat([torch.arange(p, num_steps, self.period) for p in range(self.period)])
        self._places = order.argsort().to(cell.others[0].device if cell.others else None)

    def _check_state(self) -> None:
        state = self.cell.unflatten_state(list(self.cell.state))
        named = tree.leaves_with_names(state, "state")
        for name, leaf in named:
            if leaf is not None and not is_floating(leaf):
                raise ValueError(
                    f"{self.owner} knows no update before the others, so {name}, which is carried from one to the next "
                    "without a derivative, cannot be known either: take it out of the state, or use BPTT()"
                )
        sizes = {name: leaf.shape[0] if leaf.dim() else None for name, leaf in named if leaf is not None}
        if len(set(sizes.values())) > 1 or None in sizes.values():
            raise ValueError(
                f"{self.owner} runs updates as further samples, and the leaves of state have no first dimension in "
                f"common: {sizes}. Give every leaf the shape (batch, ...), say where its batch is, such as "
                "batch_dim=(1, 0), or use BPTT()"
            )

    def starts(self, first: Tensor, states: Tensor) -> Tensor:
        """Return the states (T, batch, features) before each update, of the first one and those after each."""
        return torch.cat([first.unsqueeze(0), states[:-1]])

    def images(self, starts: Tensor, others: Sequence[Tensor], buffers: dict[str, Tensor]) -> Tensor:
        """Return the state after each update, (T, batch, features), given those before; `others` as of the cell."""

        def updates(module: nn.Module, inputs: Any) -> Tensor:
            found = [self._of_place(module, starts[p :: self.period], inputs, p) for p in range(self.period)]
            if self.period == 1:
                return found[0]
            return torch.cat(found)[self._places.to(starts.device)]

        return self.cell.call(updates, others, buffers)

    def _of_place(self, module: nn.Module, starts: Tensor, inputs: Any, place: int) -> Tensor:
        count = len(starts)
        rows = self._layout(count)
        state = self.cell.unflatten_state(rows.split(starts.flatten(0, 1), self.cell.state))
        given = self._inputs(inputs, place, count)
        after = tree.flatten(_with_lengths(module, count, self.period)(state, given, place))[0]
        return rows.join(after).view(count, self.batch, -1)

    def _layout(self, count: int) -> RowLayout:
        if count not in self._layouts:
            like = [
                leaf if leaf is None else leaf.new_empty(()).expand(count * self.batch, *leaf.shape[1:])
                for leaf in self.cell.state
            ]
            self._layouts[count] = RowLayout(like, True)
        return self._layouts[count]

    def _inputs(self, inputs: Any, place: int, count: int) -> Any:
        def repeated(leaf: Tensor) -> Tensor:
            if not leaf.dim() or leaf.shape[0] != self.batch:
                return leaf
            return leaf.unsqueeze(0).expand(count, *leaf.shape).flatten(0, 1)

        def narrowed(leaf: Tensor) -> Tensor:  # (batch, T or more, ...) -> (count * batch, 1, ...)
            return leaf[:, place : self.num_steps : self.period].movedim(1, 0).flatten(0, 1).unsqueeze(1)

        if not isinstance(inputs, Steps):
            return tree.map_tensors(repeated, inputs)
        xs, own = tree.map_tensors(narrowed, inputs.xs), tree.map_tensors(repeated, inputs.inputs)
        return replace(inputs, inputs=own, xs=xs, first=place, answers=None)


def _with_lengths(module: nn.Module, count: int, period: int) -> nn.Module:
    """Return a cell for which each update counts as an earlier one of samples that end as much earlier."""
    if isinstance(module, BatchFirst):
        return BatchFirst(_with_lengths(module.cell, count, period), module.of_state, module.of_inputs)
    if not isinstance(module, Stepwise) or module.lengths is None:
        return module
    before = period * torch.arange(count, device=module.lengths.device)
    lengths = (module.lengths - before.unsqueeze(1)).flatten()
    return Stepwise(module.cell, None, module.start, lengths, module.dims)


def ask(cell: nn.Module, inputs: Any, state: Any, step: int) -> None:
    """Have the readout asked for its answer to the state after an update, as the update itself would."""
    if isinstance(cell, BatchFirst):
        leaves, unflatten = tree.flatten(state)
        state = unflatten(cell.of_state.as_given(leaves))
        entries, rebuild = tree.flatten(inputs)
        inputs, cell = rebuild(cell.of_inputs.as_given(entries)), cell.cell
    if isinstance(cell, Stepwise) and inputs.answers.wants(step):
        inputs.answers.put(step, cell.asked(state, inputs, inputs.at(step), step))
