"""The recursion of a forward gradient as one autograd node, and its two ways back: by directions and by adjoints."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients.central_differences import check_precision, differences
from loopgrad.gradients.checks import check_unchanged, refuse_second_derivative, versions_of
from loopgrad.gradients.contract import Stats
from loopgrad.gradients.functional_cell import FunctionalCell, alias, check_nothing_hidden, leaf_view
from loopgrad.gradients.noise import Noise, fresh_seed
from loopgrad.gradients.recompute import Conditions
from loopgrad.gradients.row_layout import RowLayout
from loopgrad.gradients.tangents import carry, chunks


@dataclass
class ForwardStats(Stats):
    """What a forward gradient cost; `tangents` counts updates that one tangent was carried through."""

    tangents: int = 0


class ForwardRecursion(torch.autograd.Function):
    """The updates before the window as one node: (state leaves, other tensors) -> leaves of their last state."""

    @staticmethod
    def forward(
        ctx: Any, cell: FunctionalCell, num_steps: int, how: Any, stats: ForwardStats, rows: RowLayout, *tensors: Any
    ) -> Any:
        """Run the updates with tangents beside them, as the estimator `how` says."""
        ctx.set_materialize_grads(False)
        width, wanted = len(cell.state), ctx.needs_input_grad[5:]
        ctx.cell, ctx.num_steps, ctx.how, ctx.stats, ctx.rows = cell, num_steps, how, stats, rows
        ctx.seed, ctx.conditions = fresh_seed(how.generator), Conditions(cell.cell, tensors)
        ctx.shapes = [(t.shape, t.dtype, t.device) for t in tensors]
        versions = versions_of(tensors)
        leaves, others = tensors[:width], tensors[width:]
        chosen = [moves and how.perturb == "weights" for moves in wanted]
        if how.mode == "central":
            check_precision(tensors, chosen if any(chosen) else [i < width for i in range(len(tensors))])
            last, u = differences(ctx, tensors, chosen)
            stats.cell_evaluations += num_steps * (1 + 2 * how.num_tangents)
        else:
            last, parts = [], []
            for i, chunk in enumerate(chunks(how.num_tangents, how.chunk_size)):
                noise = Noise(ctx.seed, chunk, how.distribution, leaves[0].device)
                directions = _drawn(noise, tensors, chosen)
                streams = noise if how.perturb == "state" else None
                with ctx.conditions.restored(cell.cell) if i else nullcontext({}) as buffers:
                    found, u = carry(cell, range(num_steps), leaves, others, buffers, rows, directions, streams)
                last = last if i else found
                stats.cell_evaluations += num_steps
                stats.tangents += num_steps * len(chunk)
                parts += [] if u is None else [u]
            u = (torch.cat(parts) if len(parts) > 1 else parts[0]) if parts else None
        check_unchanged(tensors, versions, "its updates cannot be run again")
        ctx.save_for_backward(*(tensors if how.perturb == "state" else ()), *([] if u is None else [u]))
        return tuple(leaf.view_as(leaf) if any(leaf is t for t in tensors) else leaf for leaf in last)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        """Estimate the gradients of all tensors."""
        refuse_second_derivative("ForwardGradient")
        estimate = _by_adjoints if ctx.how.perturb == "state" else _by_directions
        return (None,) * 5 + tuple(estimate(ctx, ctx.rows.join(cotangents), ctx.needs_input_grad[5:]))


def _by_directions(ctx: Any, g: Tensor, wanted: tuple[bool, ...]) -> list[Tensor | None]:
    """Return the mean over tangents of (g . u) v, v drawn again."""
    how, rows, (u,) = ctx.how, ctx.rows, ctx.saved_tensors
    c = torch.einsum("krf,rf->kr", u, g) / how.num_tangents
    found: list[Tensor | None] = [None] * len(wanted)
    for k in range(how.num_tangents):
        noise = Noise(ctx.seed, range(k, k + 1), how.distribution, u.device)
        for i, (shape, dtype, _) in enumerate(ctx.shapes):
            if not wanted[i]:
                continue
            v = noise.draw(shape, torch.promote_types(dtype, torch.float32))[0]
            own = (
                i < len(ctx.cell.state) + ctx.cell.num_inputs and rows.batch is not None and shape[:1] == (rows.batch,)
            )
            factor = c[k].view(-1, *[1] * (len(shape) - 1)) if own else c[k].sum()
            found[i] = v.mul_(factor) if found[i] is None else found[i].addcmul_(v, factor)  # pyright: ignore
    return [None if g is None else g.to(dtype) for g, (_, dtype, _) in zip(found, ctx.shapes, strict=True)]


def _by_adjoints(ctx: Any, g: Tensor, wanted: tuple[bool, ...]) -> list[Tensor | None]:
    """Return the sum over updates of the vjps with the estimated adjoints, in a second recursion."""
    cell, how, rows, width = ctx.cell, ctx.how, ctx.rows, len(ctx.cell.state)
    tensors = ctx.saved_tensors[: len(wanted)]
    leaves, others = list(tensors[:width]), [alias(t, w) for t, w in zip(tensors[width:], wanted[width:], strict=True)]
    known, found = [t for t in others if t.requires_grad], [None] * len(wanted)
    noise = Noise(ctx.seed, range(how.num_tangents), how.distribution, g.device)
    u = ctx.saved_tensors[len(wanted) :]
    c = torch.einsum("krf,rf->kr", u[0], g) / how.num_tangents if u else g.new_zeros(how.num_tangents, len(g))
    with ctx.conditions.restored(cell.cell) as buffers:
        for step in range(ctx.num_steps):
            state = [alias(leaf, step == 0 and wanted[i]) for i, leaf in enumerate(leaves)]
            outputs = cell.run_on([leaf_view(leaf) for leaf in state], cell.leaf_views(others), buffers, step, step + 1)
            check_nothing_hidden(outputs, [*state, *known])
            last = step == ctx.num_steps - 1
            adjoint = g if last else torch.einsum("kr,krf->rf", c, noise.draw(g.shape, g.dtype))
            _accumulate(found, [*state, *others], outputs, adjoint, rows)
            leaves = [leaf.detach() for leaf in outputs]
            del outputs, state
    ctx.stats.cell_evaluations += ctx.num_steps
    ctx.stats.vjps += ctx.num_steps
    return [None if total is None else total.to(t.dtype) for total, t in zip(found, tensors, strict=True)]


def _accumulate(found: list, sources: list[Tensor], outputs: list[Tensor], adjoint: Tensor, rows: RowLayout) -> None:
    sizes = [leaf.numel() // len(adjoint) for leaf in outputs]
    pairs = zip(outputs, adjoint.split(sizes, dim=1), strict=True)
    pairs = [(leaf, part.reshape(leaf.shape).to(leaf.dtype)) for leaf, part in pairs if leaf.requires_grad]
    asked = [i for i, tensor in enumerate(sources) if tensor.requires_grad]
    if not pairs or not asked:
        return
    leaves, seeds = zip(*pairs, strict=True)
    gradients = torch.autograd.grad(leaves, [sources[i] for i in asked], seeds, allow_unused=True)
    for i, gradient in zip(asked, gradients, strict=True):
        if gradient is not None:
            wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            found[i] = wide if found[i] is None else found[i] + wide


def _drawn(noise: Noise, tensors: Any, chosen: list[bool]) -> list[Tensor | None]:
    """Return directions for the chosen tensors, in their dtype."""
    return [
        noise.draw(t.shape, torch.promote_types(t.dtype, torch.float32)).to(t.dtype) if moves else None
        for t, moves in zip(tensors, chosen, strict=True)
    ]
