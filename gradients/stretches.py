"""Stretches of a recursion run again with a graph, and the vector-Jacobian products through them, added up."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients.fingerprint import Fingerprints
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import (
    alias,
    check_nothing_hidden,
    free_nodes,
    leaf_view,
    next_number,
    plus,
    requires_grad,
)
from loopgrad.gradients.outputs import Saving, Taken
from loopgrad.gradients.recompute import Conditions


class Stretches:
    """Goes through stretches from the last to the first; what falls on shared tensors is added up in BPTT's own order.

    Args:
        cell: The cell.
        wanted: Which of its other tensors get a gradient.
        saving: At which updates a readout is asked, None for none.
        of_answers: The gradients of what was kept of its answers.
        prints: Compare the states at the ends of stretches.
    """

    def __init__(
        self,
        cell: FunctionalCell,
        wanted: Sequence[bool],
        saving: Saving | None,
        of_answers: Sequence[Tensor | None],
        prints: Fingerprints,
    ):
        self.cell, self.saving, self.prints = cell, saving, prints
        self.of_answers = of_answers if any(gradient is not None for gradient in of_answers) else ()
        self.others = cell.stand_ins(wanted)
        self.totals: list[Tensor | None] = [None] * len(self.others)
        for i in cell.scanned:
            self.totals[i] = torch.zeros_like(self.others[i]) if self.others[i].requires_grad else None

    def through(
        self,
        leaves: Sequence[Any],
        conditions: Conditions,
        needed: Sequence[bool],
        updates: range,
        grads: Sequence[Tensor | None],
        check: bool,
        asked_from: int = 0,
        answering: Sequence[bool] | None = None,
    ) -> list[Tensor | None] | None:
        """Return the gradients of the state before a stretch; None if there is nothing to take through.

        Args:
            leaves: Leaves of that state.
            conditions: Of the first update.
            needed: Which of them get a gradient.
            updates: The stretch.
            grads: Gradients of the leaves of the state after it.
            check: Whether to look for tensors that the cell hides.
            asked_from: First update whose answer has a part in it.
            answering: Of each sample whether its answers have; None for all.
        """
        cell, since, start, stop = self.cell, next_number(), updates.start, updates.stop
        state = [alias(leaf, need) for leaf, need in zip(leaves, needed, strict=True)]
        with conditions.restored(cell.cell) as buffers:
            others, scanned = cell.narrowed(self.others, start, stop), set(cell.scanned)
            entries = cell.leaf_views(others)
            taken = self._taken(asked_from if self.of_answers else stop, answering, conditions)
            last = cell.run_on([leaf_view(t) for t in state], entries, buffers, start, stop, start, taken)
            # BPTT adds the uses of a tensor one by one, from the last update to the first. autograd runs the node that
            # was made last first: handed the totals, these views start each sum with them, and the order is the same
            resumed = [leaf_view(t) for t in entries]
        self.prints.compare(stop, last)
        # a view has no sparse gradient: such totals are added to afterwards
        sums = [None if i in scanned else total for i, total in enumerate(self.totals)]
        apart = [total if total is not None and total.is_sparse else None for total in sums]
        dense = [total if kept is None else None for total, kept in zip(sums, apart, strict=True)]
        pairs = [*zip(last, grads, strict=True), *zip(resumed, dense, strict=True)]
        pairs = [(out, grad) for out, grad in pairs if grad is not None and requires_grad(out)]
        pairs += taken.pairs(self.of_answers) if taken is not None else []
        sources = [t for t in (*state, *others) if requires_grad(t)]
        ends = [*last, *(taken.tensors if taken is not None else ())]
        nodes = check_nothing_hidden(ends, [*sources, *cell.frozen], since) if check else []
        if not pairs:
            return None
        outputs, seeds = zip(*pairs, strict=True)
        del last, resumed, pairs, entries, taken, ends
        found = iter(torch.autograd.grad(outputs, sources, seeds, allow_unused=True))
        del outputs
        free_nodes(nodes)
        before = [next(found) if requires_grad(t) else None for t in state]
        for i, other in enumerate(others):
            gradient = next(found) if requires_grad(other) else None
            if i not in scanned:
                self.totals[i] = plus(gradient, apart[i])
            elif gradient is not None:  # of these updates alone
                cell.of_updates(self.totals[i], start, stop).add_(gradient)  # pyright: ignore[reportArgumentType]
        return before

    def _taken(self, since: int, rows: Sequence[bool] | None, conditions: Conditions) -> Taken | None:
        """Return what takes the answers of a stretch from an update on; None if the readout is not to be asked."""
        if self.saving is None or not (self.of_answers or conditions.changing):
            return None
        return Taken(self.saving, since=since, rows=rows, again=conditions.changing)
