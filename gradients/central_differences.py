"""Tangents by central differences of the recursion itself, with no autograd and no forward-mode rules."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from loopgrad.gradients.agreement import is_split
from loopgrad.gradients.contract import check_shapes, check_structure
from loopgrad.gradients.fingerprint import Fingerprints, is_landmark
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import alias, check_nothing_hidden, merged, next_number
from loopgrad.gradients.implicit_verdict import relative
from loopgrad.gradients.noise import Noise
from loopgrad.gradients.recompute import GraphFree
from loopgrad.gradients.row_layout import RowLayout


class TooCoarse(ValueError):
    """Central differences were asked for in 16-bit arithmetic."""


def differences(run: Any, tensors: Sequence[Tensor], chosen: Sequence[bool]) -> tuple[list[Any], Tensor, Tensor]:
    """Return the last state's leaves, (z(+eps) - z(-eps)) / (2 eps) for each tangent, and what is doubtful of it.

    The tangents are (K, rows, features), the doubts of `ForwardStats` (K, rows).

    Args:
        run: The pass, whose conditions every recursion meets again.
        tensors: Floating leaves of the first state, then the cell's other tensors.
        chosen: Which of them are perturbed, once; none of them to perturb the state after each update.
    """
    cell, how, rows, width = run.cell, run.how, run.rows, len(tensors) - len(run.cell.others)
    if any(moves and is_split(tensor) for tensor, moves in zip(tensors, chosen, strict=True)):
        raise RuntimeError(
            "ForwardGradient(perturb='weights') cannot move weights that tensor parallelism has split: use "
            "perturb='state' with mode='central', or CheckpointedBPTT()"
        )
    last = run_moved(cell, run.num_steps, cell.state, cell.others, {}, rows, None, 0.0, run.prints)
    middle, found, doubts = rows.join(last), [], []
    for k in range(how.num_tangents):
        ends = []
        for epsilon in (how.epsilon, -how.epsilon):
            noise, moved = Noise(run.seed, range(k, k + 1), how.distribution, tensors[0].device), list(tensors)
            for i, moves in enumerate(chosen):
                if moves:
                    moved[i] = tensors[i] + epsilon * noise.draw(tensors[i].shape, tensors[i].dtype)[0]
            within = None if any(chosen) else noise
            with run.conditions.restored(cell.cell) as buffers:
                start = merged(moved[:width], cell.state)
                end = run_moved(cell, run.num_steps, start, moved[width:], buffers, rows, within, epsilon)
            ends.append(rows.join(end))
        apart = ends[0] - ends[1]
        found.append(apart / (2 * how.epsilon))
        bend = (ends[0] + ends[1] - 2 * middle).abs() + torch.finfo(middle.dtype).eps * middle.abs()
        doubts.append(relative(vector_norm(bend, dim=1), vector_norm(apart, dim=1)))
    return last, torch.stack(found), torch.stack(doubts)


def run_moved(
    cell: FunctionalCell,
    num_steps: int,
    leaves: Sequence[Any],
    others: Sequence[Tensor],
    buffers: dict[str, Tensor],
    rows: RowLayout,
    noise: Noise | None,
    epsilon: float,
    prints: Fingerprints | None = None,
    around: Callable[[Sequence[Tensor]], AbstractContextManager[Any]] | None = None,
    owner: str = "ForwardGradient",
) -> list[Any]:
    """Run the updates from some leaves with some tensors; `around` is given the stand-ins of these."""
    state, shifted = list(leaves), epsilon != 0
    still = [a for a, b in zip(cell.others, others, strict=True) if noise is not None or a is b or torch.equal(a, b)]
    if shifted:  # else they stay as they are, for attention picks its kernel by whether its arguments require grad
        state, others = [alias(leaf, False) for leaf in state], [tensor.detach() for tensor in others]
    with GraphFree(cell.cell) as prepared, torch.enable_grad() if shifted else nullcontext():
        for step in range(num_steps):
            since = next_number()
            with nullcontext() if around is None else around(others):
                after = cell.run_on(state, others, buffers, step, step + 1)
            if shifted:
                # all that was passed is detached: this is the graph of the rest, of which only what moves is missed
                check_nothing_hidden(after, still, since)
            after = prepared(after)
            check_structure(cell.unflatten_state(state), cell.unflatten_state(after))
            check_shapes(owner, cell.unflatten_state(state), cell.unflatten_state(after))
            state = after
            if prints is not None and is_landmark(step + 1, num_steps):
                prints.meet(step + 1, state)
            if noise is not None and step < num_steps - 1:
                joined = rows.join(state)
                moved = joined + epsilon * noise.draw(joined.shape, joined.dtype)[0]
                state = rows.split(moved, state)
    return [alias(leaf, False) for leaf in state]


def check_precision(
    tensors: Sequence[Tensor], perturbed: Sequence[bool], owner: str = "ForwardGradient(mode='central')"
) -> None:
    """Raise TooCoarse if a perturbed tensor has a 16-bit dtype, or autocast is on."""
    reason = (
        "central differences drown in 16-bit rounding: of bfloat16 the relative error is 16 % at the best step (1e-2) "
        "and 100 % at 1e-3, of float32 7e-4 at 1e-4"
    )
    for tensor, moves in zip(tensors, perturbed, strict=True):
        if moves and tensor.is_floating_point() and tensor.dtype.itemsize < 4:
            raise TooCoarse(
                f"{owner} on {tensor.dtype}: {reason}. Keep float32 weights and states, or take "
                "ForwardGradient(mode='jvp')"
            )
        if torch.is_autocast_enabled(tensor.device.type):
            raise TooCoarse(
                f"{owner} under autocast: {reason}. Run the recursion within torch.autocast(..., enabled=False), or "
                "take ForwardGradient(mode='jvp')"
            )
