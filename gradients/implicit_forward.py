"""The forward pass of an implicit gradient: by unrolling the recursion or by a solver of fixed points."""

from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients import tree
from loopgrad.gradients.checks import check_unchanged, versions_of
from loopgrad.gradients.contract import check_shapes, check_structure, period_of
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.implicit_verdict import ImplicitStats
from loopgrad.gradients.observed import Watched
from loopgrad.gradients.recompute import Conditions, drop_untouched
from loopgrad.gradients.row_layout import RowLayout
from loopgrad.gradients.solvers.estimate import ESTIMATE


class ImplicitPass:
    """A forward pass to a state that is taken as a fixed point, and what going back needs beside that state.

    Args:
        cell: The cell.
        how: The estimator.
        num_steps: Number of updates.
        stats: Take the cost, and the verdict of backward.
    """

    def __init__(self, cell: FunctionalCell, how: Any, num_steps: int, stats: ImplicitStats):
        self.cell, self.how, self.num_steps, self.stats = cell, how, num_steps, stats
        self.rows = RowLayout(cell.state, how.scope == "sample")
        self.window = how.window(cell.cell, num_steps)
        self.cycle, self.first = range(num_steps - period_of(cell.cell), num_steps), num_steps - self.window
        self.watched, self.estimate = Watched(cell), False
        self._learnt: list[Tensor] = []

    def run(self, inputs: Any) -> tuple[list[Any], list[Tensor]]:
        """Run the recursion; return the leaves of its last state, and the tensors kept for backward."""
        cell, tensors = self.cell, [*self.cell.state, *self.cell.others]
        held = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
        versions = versions_of(held)
        if self.how.forward == "unroll":
            leaves, start, noted = self._unrolled(inputs, tensors)
            self.stats.cell_evaluations += self.num_steps
        else:
            noted = [Conditions(cell.cell, tensors)]
            leaves = start = self._solved(inputs, noted)
            self.start_conditions = self.cycle_conditions = noted[-1]
        check_unchanged(held, versions, "its last cycle cannot be run again")
        drop_untouched(noted, end=Conditions(cell.cell, tensors, noted[-1]))
        self.frozen = self.watched.frozen()
        del self.watched  # which knows the states of a cycle
        (last, self.rest_last), (begin, self.rest_start) = tree.apart(leaves), tree.apart(start)
        kept, self._learnt = self._learnt, []  # autograd keeps these, and frees them in time
        self.estimate = len(kept) > 0
        return leaves, [*last, *begin, *cell.others, *kept]

    def _unrolled(self, inputs: Any, tensors: list[Any]) -> tuple[list[Any], list[Any], list[Conditions]]:
        cell, num_steps, noted = self.cell, self.num_steps, []
        cuts = sorted({0, self.first, self.cycle.start, num_steps})
        leaves = start = list(cell.state)
        for first, stop in zip(cuts, cuts[1:], strict=False):
            noted.append(Conditions(cell.cell, tensors, noted[-1] if noted else None))
            if first == self.first:
                start, self.start_conditions = leaves, noted[-1]
            if first == self.cycle.start:
                self.cycle_conditions = noted[-1]
            last = self.watched.run(cell.unflatten_state(leaves), inputs, range(first, stop))
            check_structure(cell.unflatten_state(leaves), last)
            check_shapes("ImplicitGradient", cell.unflatten_state(leaves), last)
            leaves = tree.flatten(last)[0]
        return leaves, start, noted

    def _solved(self, inputs: Any, noted: list[Conditions]) -> list[Any]:
        cell, how, rows, carried = self.cell, self.how, self.rows, self.cell.state

        def image(z: Tensor) -> Tensor:
            nonlocal carried
            noted[1:] = [Conditions(cell.cell, [z, *cell.others], noted[0])]  # backward draws what the last image drew
            state = cell.unflatten_state(rows.split(z, cell.state))
            after = self.watched.run(state, inputs, self.cycle)
            check_shapes("ImplicitGradient", state, after)
            carried = tree.flatten(after)[0]
            return rows.join(carried)

        cycles, solver = self.num_steps // len(self.cycle), how.forward
        found = solver(image, rows.join(cell.state), cycles, rtol=how.forward_rtol, check_every=how.check_every)
        self.stats.cell_evaluations += found.evaluations * len(self.cycle)
        if how.solver == ESTIMATE:
            self._learnt = list(found.estimate or ())
        # where no step was finite there is no best point: the loss must hear of it
        known = found.residual.isfinite().unsqueeze(1)
        return rows.split(torch.where(known, found.state, torch.nan).detach(), carried)
