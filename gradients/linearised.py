"""One cycle of a cell at one state, run once with a graph and then seen as a linear map through its products."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import alias, check_nothing_hidden, leaf_view, next_number, pull_back
from loopgrad.gradients.recompute import Conditions
from loopgrad.gradients.row_layout import RowLayout

Found = TypeVar("Found")


class Linearised:
    """The map f of the updates `steps` at z, with J = df/dz.

    Args:
        cell: The cell, whose own parameters and inputs are not touched.
        state: Leaves of z.
        others: Leaves in place of the cell's other tensors.
        conditions: Those of the first of these updates.
        steps: The updates that f is made of.
        rows: How states are laid out.
        keep: (rows,) bool; rows of the state that are not kept are run on zeros, so that what is not finite in them
            does not reach sums over samples.
        cut: Whether the rows of inputs that are not kept are zeros too.

    Attributes:
        image: f(z), (rows, features).
        first: Leaves of the state after the first of these updates.
        vjps: Products taken so far.
        handed_on: Which rows of the first vector, where not zero, its product with J^T has left as they were, (rows,)
            bool: J is 1 in those rows, where the cell hands the state on. None before the first product.
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
        cut: bool = False,
    ):
        self._rows, self._others, self.vjps, self.reruns, since = rows, others, 0, 0, next_number()
        self.handed_on: Tensor | None = None
        state = state if keep is None else rows.masked(state, keep)
        self._state = [alias(leaf, True) for leaf in state]

        def run() -> tuple[list[Any], list[Any]]:
            with conditions.restored(cell.cell) as buffers:
                entries = cell.leaf_views(others)
                if keep is not None and cut:
                    entries = masked_inputs(cell, entries, rows, keep)
                viewed = [leaf_view(leaf) for leaf in self._state]
                first = cell.run_on(viewed, entries, buffers, steps.start, steps.start + 1)
                return first, cell.run_on(first, entries, buffers, steps.start + 1, steps.stop)

        # whether the graph serves one product only, and then has gone
        self._run, self._single, self._gone = run, False, False
        self.first, self._outputs = run()
        self.first = [alias(leaf, False) for leaf in self.first]
        check_nothing_hidden(self._outputs, [*self._state, *others, *cell.frozen], since)
        self.image = rows.join(self._outputs).detach()

    def pull(self, vector: Tensor) -> Tensor:
        """Return J^T vector, row by row."""
        product = self._rows.join(self._pulled(vector, self._state, keep=True))
        if self.handed_on is None:
            self.handed_on = (product == vector).all(dim=1) & (vector != 0).any(dim=1)
        return product

    def gradients(self, vector: Tensor) -> list[Tensor | None]:
        """Return (df/d other)^T vector for each other tensor, and let go of the graph."""
        return self._pulled(vector, self._others, keep=False)

    def _pulled(self, vector: Tensor, sources: Sequence[Tensor], keep: bool) -> list[Tensor | None]:
        self.vjps += 1
        if self._gone:
            self.reruns += 1
            self._outputs = self._run()[1]
        cotangents = self._rows.split(vector)
        try:
            found = pull_back(self._outputs, cotangents, sources, keep and not self._single)
        except RuntimeError as error:
            if "donated buffers" not in str(error):
                raise
            # compiled code reuses the memory of what forward saved. Compiling with donated_buffer=False is no help:
            # torch 2.13 takes the old code from its cache on disk all the same, and the second product is wrong
            self._single = True
            found = pull_back(self._outputs, cotangents, sources)
        self._gone = self._single
        return found


def without_lost(run: Callable[[bool], tuple[Found, Tensor]], keep: Tensor) -> Found:
    """Return what `run` finds with zeros in the rows of the state that are not kept, which then do the others no harm.

    If their image is not finite even so, their inputs are at fault, and are cut too. Which rows of inputs those are is
    a guess, by the number of rows; it is dropped again if the other samples get anything else by it.

    Args:
        run: Called with whether to cut inputs, returns what it finds and its image, (rows, features).
        keep: (rows,) bool.
    """
    found, image = run(False)
    if bool(image.isfinite().all()):
        return found
    other, after = run(True)
    moved, size = (vector_norm(torch.where(keep.unsqueeze(1), it, 0.0)) for it in (after - image, image))
    return other if bool(moved <= torch.finfo(image.dtype).eps ** 0.5 * size) else found


def masked_inputs(cell: FunctionalCell, entries: list[Tensor], rows: RowLayout, keep: Tensor) -> list[Tensor]:
    """Return the tensors with zeros in the rows of floating inputs that are not kept."""
    result = list(entries)
    for i, tensor in enumerate(entries[: cell.num_inputs]):
        if tensor.is_floating_point() and tensor.dim() and tensor.shape[0] == rows.batch:
            result[i] = rows.masked([tensor], keep)[0]
    return result
