"""One cycle of a cell at one state, run once with a graph and then seen as a linear map through its products."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import alias, check_nothing_hidden, leaf_view, next_number, pull_back
from loopgrad.gradients.recompute import Conditions
from loopgrad.gradients.row_layout import RowLayout


class Linearised:
    """The map f of the updates `steps` at z, with J = df/dz.

    Args:
        cell: The cell, whose own parameters and inputs are not touched.
        state: Leaves of z.
        others: Leaves in place of the cell's other tensors.
        conditions: Those of the first of these updates.
        steps: The updates that f is made of.
        rows: How states are laid out.
        keep: (rows,) bool; rows that are not kept are run on zeros, in state and inputs, so that what is not finite in
            them does not reach sums over samples.

    Attributes:
        image: f(z), (rows, features).
        vjps: Products taken so far.
    """

    def __init__(
        self,
        cell: FunctionalCell,
        state: Sequence[Any],
        others: Sequence[Tensor],
        conditions: Conditions,
        steps: range,
        rows: RowLayout,
        keep: Tensor | None = None,
    ):
        self._rows, self._others, self.vjps, since = rows, others, 0, next_number()
        state = state if keep is None else rows.masked(state, keep)
        self._state = [alias(leaf, True) for leaf in state]
        with conditions.restored(cell.cell) as buffers:
            entries = cell.leaf_views(others)
            if keep is not None:
                entries = masked_inputs(cell, entries, rows, keep)
            viewed = [leaf_view(leaf) for leaf in self._state]
            self._outputs = cell.run_on(viewed, entries, buffers, steps.start, steps.stop)
        check_nothing_hidden(self._outputs, [*self._state, *others, *cell.cell.parameters()], since)
        self.image = rows.join(self._outputs).detach()

    def pull(self, vector: Tensor) -> Tensor:
        """Return J^T vector, row by row."""
        self.vjps += 1
        return self._rows.join(pull_back(self._outputs, self._rows.split(vector), self._state, keep=True))

    def gradients(self, vector: Tensor) -> list[Tensor | None]:
        """Return (df/d other)^T vector for each other tensor, and let go of the graph."""
        self.vjps += 1
        return pull_back(self._outputs, self._rows.split(vector), self._others)


def masked_inputs(cell: FunctionalCell, entries: list[Tensor], rows: RowLayout, keep: Tensor) -> list[Tensor]:
    """Return the tensors with zeros in the rows of floating inputs that are not kept."""
    result = list(entries)
    for i, tensor in enumerate(entries[: cell.num_inputs]):
        if tensor.is_floating_point() and tensor.dim() and tensor.shape[0] == rows.batch:
            result[i] = rows.masked([tensor], keep)[0]
    return result
