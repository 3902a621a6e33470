"""Running a recursion of which some updates carry the gradient and the others do not."""

from typing import Any

from torch import Tensor, nn

from loopgrad.gradients import tree
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.recompute import Conditions, GraphFree
from loopgrad.gradients.rows_going import tried


def run_scoped(cell: nn.Module, state: Any, inputs: Any, num_steps: int, updates: frozenset[int]) -> Any:
    """Run updates, those in `updates` under autograd; what the others change is detached."""
    for step in range(num_steps):
        if step in updates:
            state = cell(state, tree.own_containers(inputs), step)
            continue
        before = tree.flatten(state)[0]
        with GraphFree(cell) as prepared:
            state = prepared(state)  # compiled code is another for a state that requires grad
            given = tree.flatten(state)[0]
            after, unflatten = tree.flatten(cell(state, tree.own_containers(inputs), step))
        if len(after) != len(before):
            return unflatten(after)  # another structure, which is for the caller to refuse
        state = unflatten([_constant(*leaves) for leaves in zip(after, given, before, strict=True)])
    return state


def _constant(new: Any, given: Any, old: Any) -> Any:
    return old if new is given else new.detach() if isinstance(new, Tensor) else new


def changed_by(cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> list[frozenset[str]]:
    """Return for each update of a cycle the names of the leaves that it changes; one cycle is run, without a trace.

    Of a recursion of fewer updates than a cycle has these are run; of the others all leaves are named.
    """
    functional, names = FunctionalCell(cell, state, inputs), tree.dotted_names(state)
    found: list[frozenset[str]] = []

    def cycle(module: nn.Module, inputs: Any) -> None:
        z = state
        for step in range(min(period_of(cell), num_steps)):
            before = tree.flatten(z)[0]
            z = module(z, tree.own_containers(inputs), step)
            pairs = zip(names, before, tree.flatten(z)[0], strict=True)
            found.append(frozenset(name for name, old, new in pairs if old is not new))

    conditions = Conditions(cell, [*functional.state, *functional.others])
    with tried(), conditions.restored(cell) as buffers, GraphFree(cell):
        functional.call(cycle, functional.others, buffers)
    return found + [frozenset(names)] * (period_of(cell) - len(found))
