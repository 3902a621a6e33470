"""Carrying tangents through updates: u <- J_z u + J_w v, several at once, with no graph and no stored state."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap

from loopgrad.gradients.agreement import is_split
from loopgrad.gradients.contract import check_shapes, check_structure
from loopgrad.gradients.fingerprint import Fingerprints, is_landmark
from loopgrad.gradients.forward_levels import TURN, ForwardLevels
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import check_nothing_hidden, is_floating, merged, next_number
from loopgrad.gradients.noise import Noise
from loopgrad.gradients.recompute import GraphFree
from loopgrad.gradients.row_layout import RowLayout
from loopgrad.gradients.tangent_rules import TangentRules

# what torch says when an operator has no forward-mode rule, no batching rule, or writes where it must not
_MARKS = ("forward ad", "forward-mode", "jvp", "vmap", "batching rule", "functorch", "functional transform")
_MARKS += ("in-place", "have storage", "numpy")


class CannotCarry(RuntimeError):
    """An operator of the cell has no forward-mode or batching rule, or writes where these must not."""


def carry(
    cell: FunctionalCell,
    steps: range,
    leaves: Sequence[Any],
    others: Sequence[Tensor],
    buffers: dict[str, Tensor],
    rows: RowLayout,
    directions: Sequence[Tensor | None],
    noise: Noise | None = None,
    prints: Fingerprints | None = None,
) -> tuple[list[Any], Tensor | None]:
    """Run updates with tangents beside the state.

    Tangents are kept in the precision of `rows` (float32 at least) between updates, whatever the cell computes in.
    Attention runs on the kernel that has forward AD; dropout draws one mask for all tangents.

    Args:
        cell: The cell.
        steps: Numbers of the updates.
        leaves: Leaves of the first state.
        others: In place of the cell's other tensors.
        buffers: To run with; empty for the cell's own.
        rows: How tangents are laid out.
        directions: For each floating one of `leaves` and each of `others`, its tangents (K, *shape), or None for zero.
        noise: Added to the tangents after each update but the last.
        prints: Meet some of the states on the way, which every run must pass through.

    Returns:
        The last state's leaves, and its tangents (K, rows, features), None if nothing had any.

    Raises:
        CannotCarry: An operator of the cell cannot carry tangents.
        RuntimeError: The cell reads a tensor that requires grad and is none of `leaves` and `others`.
    """
    width = sum(map(is_floating, leaves))
    of_state, of_others = directions[:width], directions[width:]
    moving = [i for i, v in enumerate(of_others) if v is not None]
    still = [tensor for tensor, v in zip(others, of_others, strict=True) if v is None]
    if moving and any(isinstance(module, torch.jit.ScriptModule) for module in cell.cell.modules()):
        raise CannotCarry(
            "the cell has scripted or traced modules, whose weights cannot be given tangents: use the modules from "
            "before torch.jit, or ForwardGradient(perturb='state')"
        )
    if any(map(is_split, others)):
        raise CannotCarry(
            "the cell's weights are split by tensor parallelism, and torch has no forward-mode rule for what it "
            "exchanges: use ForwardGradient(perturb='state', mode='central') or CheckpointedBPTT()"
        )
    v = [of_others[i] for i in moving]
    given = next((d for d in directions if d is not None), None)
    leaves, others = list(map(without_graph, leaves)), list(map(without_graph, others))
    floating, u = list(filter(is_floating, leaves)), None
    if given is not None:
        u = join_tangents(
            [_zeros(given, leaf) if d is None else d for leaf, d in zip(floating, of_state, strict=True)], rows
        )
    with Carrying(cell.cell):
        for step in steps:
            after: list[Any] = []
            since = next_number()

            def update(state: list, moved: list, step: int = step, before: list = leaves, after: list = after) -> Any:
                read = list(others)
                for i, tensor in zip(moving, moved, strict=True):
                    read[i] = tensor
                after[:] = cell.run_on(merged(state, before), read, buffers, step, step + 1)
                return list(filter(is_floating, after)), [leaf for leaf in after if _is_carried(leaf)]

            along: list[Tensor] = []
            if u is None:
                floating, carried = update(floating, [others[i] for i in moving])
            else:
                floating, along, carried = pushed(
                    update, floating, [others[i] for i in moving], split_tangents(u, floating), v
                )
            # what the cell reads itself, in code that a mode cannot see, is right as it is unless it is to move
            check_nothing_hidden(floating, still, since)
            queue, floating = iter(carried), [leaf.detach() for leaf in floating]
            after = [next(queue) if _is_carried(leaf) else leaf for leaf in after]
            check_structure(cell.unflatten_state(leaves), cell.unflatten_state(after))
            check_shapes("a tangent", cell.unflatten_state(leaves), cell.unflatten_state(after))
            leaves = merged(floating, after)
            if prints is not None and is_landmark(step + 1, steps.stop):
                prints.meet(step + 1, leaves)
            u = u if u is None else join_tangents(along, rows).detach()
            if noise is not None and step != steps[-1]:
                drawn = noise.draw(rows.join(leaves).shape, rows.dtype)
                u = drawn if u is None else u.add_(drawn)
    return leaves, u


def _is_carried(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not is_floating(leaf)


def without_graph(leaf: Any) -> Any:
    """Return a leaf without its graph, and a copy where its elements share memory, as those of an expanded one."""
    if not isinstance(leaf, Tensor):
        return leaf
    shares = any(step == 0 and size > 1 for size, step in zip(leaf.shape, leaf.stride(), strict=True))
    return leaf.detach().contiguous() if shares else leaf.detach()


def pushed(update: Any, leaves: list, moved: list, u: list, v: list) -> tuple[list[Tensor], list[Tensor], list]:
    """Return update(leaves, moved), its tangents along (u, v), (K, *shape) each, and what it hands on beside.

    Args:
        update: Returns floating tensors, and tensors that are carried.
        leaves: Its first arguments.
        moved: Its second arguments.
        u: Tangents (K, *shape) of the first.
        v: Of the second.

    Raises:
        CannotCarry: An operator cannot carry tangents.
    """

    def along(u: list, v: list) -> Any:
        return jvp(update, (leaves, moved), (u, v), has_aux=True)

    try:
        with TURN, ForwardLevels():
            if len(u[0]) == 1:
                after, pushed, carried = along([t[0] for t in u], [t[0] for t in v])
                return after, [t.unsqueeze(0) for t in pushed], carried
            return vmap(along, out_dims=(None, 0, None), randomness="same")(u, v)  # pyright: ignore
    except RuntimeError as error:
        said = str(error)
        if not any(mark in said.lower() for mark in _MARKS):
            raise
        raise CannotCarry(
            f"the cell cannot carry tangents (torch.func.jvp under vmap): {said.strip().splitlines()[0]} Use operators "
            "with a forward-mode rule (embedding and sum in place of embedding_bag, eval() for batch normalisation, "
            "jvp and setup_context for an autograd.Function), or mode='central', which runs the cell as it is"
        ) from error


class Carrying:
    """Runs updates on operators with forward AD and by `TangentRules`; keeps no tangent's cast in autocast's cache.

    A graph is recorded only of a tensor that nobody has passed, for that to be noticed: all others are detached.
    """

    def __init__(self, cell: nn.Module):
        self._graph_free, self._rules = GraphFree(cell), TangentRules()
        self._cached = torch.is_autocast_cache_enabled()

    def __enter__(self) -> None:
        self._graph_free.__enter__()
        torch.set_grad_enabled(True)
        torch.set_autocast_cache_enabled(False)
        self._rules.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._rules.__exit__(*exception)
        torch.set_autocast_cache_enabled(self._cached)
        self._graph_free.__exit__(*exception)


def join_tangents(tangents: Sequence[Tensor], rows: RowLayout) -> Tensor:
    """Return tangents (K, *shape) of the leaves of a state as one tensor (K, rows, features)."""
    count = rows.batch if rows.batch is not None else 1
    sizes = [t[0].numel() // count if count else t.shape[2:].numel() for t in tangents]
    parts = [t.to(rows.dtype).reshape(len(t), count, size) for t, size in zip(tangents, sizes, strict=True)]
    return torch.cat(parts, dim=2)


def split_tangents(u: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Return the tangents (K, *shape) of each leaf, given (K, rows, features)."""
    rows = u.shape[1]
    sizes = [leaf.numel() // rows if rows else leaf.shape[1:].numel() for leaf in leaves]
    parts = zip(u.split(sizes, dim=2), leaves, strict=True)
    return [part.reshape(len(u), *leaf.shape).to(leaf.dtype) for part, leaf in parts]


def _zeros(like: Tensor, leaf: Tensor) -> Tensor:
    return leaf.new_zeros((len(like), *leaf.shape))


def chunks(count: int, size: int | None) -> list[range]:
    """Return 0..count-1 cut into ranges of at most `size`."""
    size = size or count
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
