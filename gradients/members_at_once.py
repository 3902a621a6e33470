"""The recursions of several perturbations at once: torch.vmap over them, update by update."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients import tree
from loopgrad.gradients.contract import check_shapes, check_structure
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import HiddenTensor, alias, check_nothing_hidden, is_floating, next_number
from loopgrad.gradients.recompute import GraphFree
from loopgrad.gradients.row_layout import RowLayout


def run_together(
    cell: FunctionalCell,
    num_steps: int,
    leaves: Sequence[Any],
    others: Sequence[Tensor],
    own: Sequence[bool],
    carried: Sequence[Tensor],
    buffers: dict[str, Tensor],
    rows: RowLayout,
    around: Callable[[Sequence[Tensor], Sequence[Tensor]], AbstractContextManager[Any]],
    owner: str,
) -> Tensor:
    """Return the last states of all members, (members, rows, features).

    Args:
        cell: The cell.
        num_steps: Updates.
        leaves: Of the first state; every tensor has the members in front.
        others: In place of the cell's own tensors.
        own: Which of them have the members in front.
        carried: Further tensors with the members in front.
        buffers: By name.
        rows: How a state is laid out.
        around: Given what one member has in place of `others` and `carried`, the context of an update.
        owner: Name of the estimator.

    Raises:
        RuntimeError: torch.vmap cannot run the cell.
    """
    state, others = [alias(leaf, False) for leaf in leaves], [tensor.detach() for tensor in others]
    still = [tensor for tensor, moves in zip(cell.others, own, strict=True) if not moves]
    each = [tensor for tensor, moves in zip(others, own, strict=True) if moves]
    with GraphFree(cell.cell) as prepared, torch.enable_grad():
        for step in range(num_steps):
            tensors, rest = tree.apart(state)
            since, found = next_number(), list[Any]()

            def update(
                tensors: list[Tensor],
                each: list[Tensor],
                carried: list[Tensor],
                rest: Any = rest,
                step: int = step,
                found: list[Any] = found,
            ) -> tuple[Tensor, ...]:
                queue = iter(each)
                given = [next(queue) if moves else tensor for tensor, moves in zip(others, own, strict=True)]
                with around(given, carried):
                    after = cell.run_on(tree.together(tensors, rest), given, buffers, step, step + 1)
                tensors, found[:] = tree.apart(after)
                return tuple(tensors)

            after = tree.together(_mapped(update, owner, tensors, each, list(carried)), found)
            check_nothing_hidden(after, still, since)
            after = prepared(after)
            check_structure(cell.unflatten_state(state), cell.unflatten_state(after))
            one, other = ([leaf[0] if isinstance(leaf, Tensor) else leaf for leaf in it] for it in (state, after))
            check_shapes(owner, cell.unflatten_state(one), cell.unflatten_state(other))
            state = after
    with torch.no_grad():
        floating = [leaf.detach() for leaf in state if is_floating(leaf)]
        return torch.vmap(lambda *leaves: rows.join(leaves))(*floating)


def _mapped(update: Any, owner: str, *given: list[Tensor]) -> Any:
    try:
        return torch.vmap(update)(*given)
    except (HiddenTensor, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        raise RuntimeError(
            f"{owner}(chunk=...) runs several perturbations at once through torch.vmap, and that could not run this "
            f"cell, which draws random numbers, writes to a buffer or looks at values: take chunk=1. It says: {error}"
        ) from error
