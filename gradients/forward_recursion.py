"""The recursion of a forward gradient as one autograd node, and its two ways back: by directions and by adjoints."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients.agreement import agreed_seed
from loopgrad.gradients.central_differences import check_precision, differences
from loopgrad.gradients.checks import check_unchanged, refuse_complex, refuse_second_derivative, versions_of
from loopgrad.gradients.contract import Stats
from loopgrad.gradients.fingerprint import Fingerprints, is_landmark
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import (
    alias,
    check_nothing_hidden,
    is_floating,
    leaf_view,
    next_number,
    pull_back,
    requires_grad,
    spread,
)
from loopgrad.gradients.noise import Noise, fresh_seed
from loopgrad.gradients.observed import Frozen, frozen_parameters, seeing_all
from loopgrad.gradients.recompute import Conditions
from loopgrad.gradients.recursion_node import RecursionNode
from loopgrad.gradients.row_layout import RowLayout
from loopgrad.gradients.tangents import carry, chunks
from loopgrad.gradients.untouched import Untouched


@dataclass
class ForwardStats(Stats):
    """What a forward gradient cost.

    Attributes:
        tangents: Updates that one tangent was carried through.
        doubt: Of mode="central", how much of a difference may be curvature or rounding, per tangent and row, on the
            device: (|z(+eps) + z(-eps) - 2 z| + u |z|) / |z(+eps) - z(-eps)|, with u the dtype's epsilon. Near 0 all is
            well; near 1 one of the two runs did not move, or went somewhere else altogether.
    """

    tangents: int = 0
    doubt: Tensor | None = field(default=None, compare=False, repr=False)

    def numbers(self) -> dict[str, float]:
        """Return what every estimator does, and with mode="central" the largest doubt."""
        known = self.doubt is not None and self.doubt.numel()
        return super().numbers() | ({"doubt": self.doubt.max().item()} if known else {})  # pyright: ignore


class ForwardPass:
    """The updates before the window, run with tangents beside them, and what the way back needs.

    Args:
        cell: The cell.
        num_steps: Number of these updates.
        how: The estimator.
        stats: Take the cost.
        rows: How states are laid out.
    """

    def __init__(self, cell: FunctionalCell, num_steps: int, how: Any, stats: ForwardStats, rows: RowLayout):
        self.cell, self.num_steps, self.how, self.stats, self.rows = cell, num_steps, how, stats, rows
        self.frozen = Frozen(frozen_parameters(cell.cell), [])
        self.conditions = Conditions(cell.cell, [*cell.state, *cell.others])
        self.seed = agreed_seed(fresh_seed(how.generator), cell.cell)

    def run(self) -> tuple[list[Any], list[Tensor]]:
        """Run the updates; return the leaves of their last state, and the tensors kept for backward."""
        last, u = seeing_all(self.cell, self.conditions, self._run, self.stats, self.num_steps + self.how.window)
        self.carries = u is not None
        return last, [*([] if u is None else [u]), *(self.cell.sources if self.how.perturb == "state" else [])]

    def _run(self) -> tuple[list[Any], Tensor | None]:
        """Return the leaves of the last state, and its tangents (K, rows, features) if it has any."""
        cell, how, rows, sources, stats = self.cell, self.how, self.rows, self.cell.sources, self.stats
        width, num_steps, versions = len(sources) - len(cell.others), self.num_steps, versions_of(sources)
        chosen = [source.requires_grad and how.perturb == "weights" for source in sources]
        if how.perturb == "weights":
            refuse_complex("ForwardGradient(perturb='weights')", sources)
        parts = chunks(how.num_tangents, how.chunk_size)
        again = how.perturb == "state" or (how.mode == "jvp" and len(parts) > 1)
        dtypes = [source.dtype for source in sources if is_floating(source)]
        dtypes += [dtype for _, enabled, dtype in self.conditions.autocast.devices if enabled]
        # attention has another kernel with tangents than without, and rounds otherwise; so do float64 answers to it
        self.prints = Fingerprints(16 * max(torch.finfo(dtype).eps for dtype in dtypes))
        if how.mode == "central":
            check_precision(sources, chosen if any(chosen) else [i < width for i in range(len(sources))])
            last, u, stats.doubt = differences(self, sources, chosen)
            stats.cell_evaluations += num_steps * (1 + 2 * how.num_tangents)
        else:
            last, tangents = [], []
            for i, chunk in enumerate(parts):
                noise = Noise(self.seed, chunk, how.distribution, sources[0].device)
                directions = _drawn(noise, sources, chosen)
                streams = noise if how.perturb == "state" else None
                with self.conditions.restored(cell.cell) if i else nullcontext({}) as buffers:
                    given = cell, range(num_steps), cell.state, cell.others, buffers, rows, directions, streams
                    found, u = carry(*given, self.prints if again else None)
                last = last if i else found
                stats.cell_evaluations += num_steps
                stats.tangents += num_steps * len(chunk)
                tangents += [] if u is None else [u]
            u = (torch.cat(tangents) if len(tangents) > 1 else tangents[0]) if tangents else None
            if len(parts) > 1:
                self.prints.judge("ForwardGradient", "raise")
        check_unchanged(sources, versions, "its updates cannot be run again")
        return last, u


class ForwardRecursion(RecursionNode):
    """The node of a `ForwardPass`; it keeps the tangents of the last state, and the sources for a second recursion."""

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        """Estimate the gradients of all tensors."""
        refuse_second_derivative("ForwardGradient")
        run, saved = ctx.run, ctx.saved_tensors
        run.frozen.check()
        estimate = _by_adjoints if run.how.perturb == "state" else _by_directions
        with Untouched(run.cell.cell, run.conditions):
            u = saved[0] if run.carries else None
            found = estimate(run, u, run.rows.join(cotangents), ctx.needs_input_grad[3:])
        return None, None, None, *found


def _by_directions(run: ForwardPass, u: Any, g: Tensor, wanted: Any) -> list[Tensor | None]:
    """Return the mean over tangents of (g . u) v, v drawn again."""
    how, rows, sources = run.how, run.rows, run.cell.sources
    given = len(sources) - len(run.cell.own)  # state and inputs
    c = _coefficients(u, g)
    found: list[Tensor | None] = [None] * len(wanted)
    for k in range(how.num_tangents):
        noise = Noise(run.seed, range(k, k + 1), how.distribution, u.device)
        for i, source in enumerate(sources):
            if not wanted[i]:
                continue
            v = noise.draw(source.shape, torch.promote_types(source.dtype, torch.float32))[0]
            own = i < given and rows.batch is not None and source.shape[:1] == (rows.batch,)
            factor = c[k].view(-1, *[1] * (source.dim() - 1)) if own else c[k].sum()
            found[i] = v.mul_(factor) if found[i] is None else found[i].addcmul_(v, factor)  # pyright: ignore
    return _as(found, sources)


def _by_adjoints(run: ForwardPass, u: Any, g: Tensor, wanted: Any) -> list[Tensor | None]:
    """Return the sum over updates of the vjps with the estimated adjoints, in a second recursion."""
    cell, how, rows, needs = run.cell, run.how, run.rows, iter(wanted)
    leaves, first = cell.state, spread(needs, cell.state)
    others = cell.stand_ins(list(needs))
    known, found = [t for t in others if t.requires_grad], [None] * len(wanted)
    noise = Noise(run.seed, range(how.num_tangents), how.distribution, g.device)
    c = g.new_zeros(how.num_tangents, len(g)) if u is None else _coefficients(u, g)
    recorded = False
    with run.conditions.restored(cell.cell) as buffers:
        for step in range(run.num_steps):
            since = next_number()
            state = [alias(leaf, step == 0 and first[i]) for i, leaf in enumerate(leaves)]
            outputs = cell.run_on([leaf_view(leaf) for leaf in state], cell.leaf_views(others), buffers, step, step + 1)
            check_nothing_hidden(outputs, [*state, *known, *cell.frozen], since)
            recorded = recorded or any(map(requires_grad, outputs))  # an update may read no weights
            last = step == run.num_steps - 1
            adjoint = g if last else torch.einsum("kr,krf->rf", c, noise.draw(g.shape, g.dtype))
            _accumulate(found, [*filter(is_floating, state), *others], outputs, adjoint, rows)
            if is_landmark(step + 1, run.num_steps):
                run.prints.meet(step + 1, outputs)
            leaves = [alias(leaf, False) for leaf in outputs]
            del outputs, state
    if known and not recorded:
        raise RuntimeError(
            "ForwardGradient(perturb='state') takes the vector-Jacobian product of each update, and the cell records "
            "no graph (it leaves torch, or detaches): use ForwardGradient(perturb='weights', window=0, mode='central')"
        )
    run.prints.judge("ForwardGradient", "raise")
    run.stats.cell_evaluations += run.num_steps
    run.stats.vjps += run.num_steps
    return _as(found, cell.sources)


def _as(found: list[Any], sources: list[Tensor]) -> list[Tensor | None]:
    return [None if g is None else g.to(source.dtype) for g, source in zip(found, sources, strict=True)]


def _coefficients(u: Tensor, g: Tensor) -> Tensor:
    """Return (g . u) / K by row; 0 for a sample that has no part in the loss, even where u is not finite."""
    return torch.where((g == 0).all(dim=1), 0.0, torch.einsum("krf,rf->kr", u, g) / len(u))


def _accumulate(found: list, sources: list[Tensor], outputs: list[Any], adjoint: Tensor, rows: RowLayout) -> None:
    for i, gradient in enumerate(pull_back(outputs, rows.split(adjoint), sources)):
        if gradient is not None:
            wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            found[i] = wide if found[i] is None else found[i] + wide


def _drawn(noise: Noise, tensors: Any, chosen: list[bool]) -> list[Tensor | None]:
    """Return directions for the chosen tensors, in their dtype."""
    return [
        noise.draw(t.shape, torch.promote_types(t.dtype, torch.float32)).to(t.dtype) if moves else None
        for t, moves in zip(tensors, chosen, strict=True)
    ]
