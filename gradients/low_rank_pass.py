"""The recursions of `LowRankES`: what each perturbation is, where it enters, and the gradient that it gives."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients.agreement import agreed_seed, is_split
from loopgrad.gradients.carried_products import Factors
from loopgrad.gradients.carried_reads import Carrying, Uses
from loopgrad.gradients.central_differences import check_precision, run_moved
from loopgrad.gradients.checks import check_unchanged, refuse_complex, refuse_second_derivative, versions_of
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import is_floating, merged
from loopgrad.gradients.members_at_once import run_together
from loopgrad.gradients.noise import fresh_seed
from loopgrad.gradients.observed import Frozen, frozen_parameters, seeing_all
from loopgrad.gradients.recompute import Conditions
from loopgrad.gradients.recursion_node import RecursionNode
from loopgrad.gradients.row_layout import RowLayout
from loopgrad.gradients.untouched import Untouched


class LowRankPass:
    """A recursion as it is and under perturbations, and what the way back needs.

    Args:
        cell: The cell.
        num_steps: Updates.
        how: The estimator.
        stats: Take the cost.
        rows: How states are laid out.
    """

    def __init__(self, cell: FunctionalCell, num_steps: int, how: Any, stats: Any, rows: RowLayout):
        self.cell, self.num_steps, self.how, self.stats, self.rows = cell, num_steps, how, stats, rows
        self.frozen = Frozen(frozen_parameters(cell.cell), [])
        self.conditions = Conditions(cell.cell, [*cell.state, *cell.others])
        self.seed = agreed_seed(fresh_seed(how.generator), cell.cell)
        self.matrices: frozenset[int] = frozenset()

    def run(self) -> tuple[list[Any], list[Tensor]]:
        """Run the recursions; return the leaves of the last state, and its tangents (K, rows, features)."""
        last, u = seeing_all(self.cell, self.conditions, self._run, self.stats, self.num_steps)
        return last, [] if u is None else [u]

    def _run(self) -> tuple[list[Any], Tensor | None]:
        cell, how, sources = self.cell, self.how, self.cell.sources
        width, versions = len(sources) - len(cell.others), versions_of(sources)
        chosen = [source.requires_grad for source in sources]
        check_precision(sources, chosen, "LowRankES")
        refuse_complex("LowRankES", sources)
        if any(is_split(source) for source in sources):
            raise RuntimeError(
                "LowRankES cannot move weights that tensor parallelism has split: use CheckpointedBPTT()"
            )
        uses = Uses(cell.others)
        last = self._moved(cell.state, cell.others, {}, 0.0, lambda _: uses)
        self.stats.cell_evaluations += self.num_steps
        if not any(chosen):
            return last, None
        own = range(cell.num_inputs, len(cell.others)) if how.rank is not None else ()
        self.matrices = frozenset(width + i for i in own if i in uses.linear - uses.other and cell.others[i].dim() == 2)
        middle = self.rows.join(last).detach()
        u = middle.new_empty(how.population, *middle.shape)
        for members in self.chunks():
            u[members.start : members.stop] = self.tangents(members, chosen, middle)
        check_unchanged(sources, versions, "its updates cannot be run again")
        return last, u

    def tangents(self, members: range, chosen: Sequence[bool], middle: Tensor) -> Tensor:
        """Return by how much some perturbations move the last state, over their size."""
        how, drawn, ends = self.how, self.stacked(members, chosen), []
        for sigma in (how.sigma, -how.sigma) if how.antithetic else (how.sigma,):
            with self.conditions.restored(self.cell.cell) as buffers:
                ends.append(self._ends(drawn, len(members), sigma, buffers))
            self.stats.cell_evaluations += self.num_steps * len(members)
        other, steps = (ends[1], 2) if how.antithetic else (middle, 1)
        return (ends[0] - other) / (steps * how.sigma)

    def _moved(self, leaves: Any, others: Any, buffers: Any, sigma: float, around: Any) -> list[Any]:
        given = self.cell, self.num_steps, leaves, others, buffers, self.rows
        return run_moved(*given, None, sigma, None, around, "LowRankES")

    def _ends(self, drawn: Sequence[Any], count: int, sigma: float, buffers: dict[str, Tensor]) -> Tensor:
        """Return the last states under perturbations that lie along a first dimension, (members, rows, features)."""
        cell, sources = self.cell, self.cell.sources
        width = len(sources) - len(cell.others)
        moved = [t + sigma * it if isinstance(it, Tensor) else t for t, it in zip(sources, drawn, strict=True)]
        low = {i - width: it for i, it in enumerate(drawn) if isinstance(it, Factors)}
        if count == 1:
            first = [it[0] if isinstance(e, Tensor) else it for it, e in zip(moved, drawn, strict=True)]
            factors = {i: Factors(it.a[0], it.b[0]) for i, it in low.items()}

            def alone(tensors: Sequence[Tensor]) -> Carrying:
                return Carrying(tensors, factors, sigma)

            end = self._moved(merged(first[:width], cell.state), first[width:], buffers, sigma, alone)
            return self.rows.join(end).unsqueeze(0)
        for i, it in enumerate(drawn[:width]):
            if it is None:
                moved[i] = moved[i].expand(count, *moved[i].shape)
        state = [
            leaf.expand(count, *leaf.shape) if isinstance(leaf, Tensor) and not is_floating(leaf) else leaf
            for leaf in cell.state
        ]

        def around(tensors: Sequence[Tensor], pairs: Sequence[Tensor]) -> Carrying:
            given = zip(low, pairs[::2], pairs[1::2], strict=True)
            return Carrying(tensors, {i: Factors(a, b) for i, a, b in given}, sigma, together=True)

        return run_together(
            cell,
            self.num_steps,
            merged(moved[:width], state),
            moved[width:],
            [isinstance(it, Tensor) for it in drawn[width:]],
            [tensor for it in low.values() for tensor in (it.a, it.b)],
            buffers,
            self.rows,
            around,
            "LowRankES",
        )

    def chunks(self) -> list[range]:
        """Return the numbers of the perturbations, so many as run at once."""
        how = self.how
        return [range(k, min(k + how.chunk, how.population)) for k in range(0, how.population, how.chunk)]

    def stacked(self, members: range, chosen: Sequence[bool]) -> list[Any]:
        """Return what `drawn` gives for some perturbations, along a new first dimension."""
        found, sources = list[Any](), self.cell.sources
        for each in zip(*(self.drawn(k, sources, chosen) for k in members), strict=True):
            if each[0] is None:
                found.append(None)
            elif isinstance(each[0], Factors):
                found.append(Factors(*(_stack([getattr(it, name) for it in each]) for name in ("a", "b"))))
            else:
                found.append(_stack(each))
        return found

    def drawn(self, k: int, sources: Sequence[Tensor], chosen: Sequence[bool]) -> list[Tensor | Factors | None]:
        """Return perturbation number k of all sources, the same at each call; None for one that is not chosen."""
        generator = torch.Generator(sources[0].device).manual_seed(self.seed + k)

        def normal(*shape: int, like: Tensor) -> Tensor:
            return torch.empty(shape, dtype=like.dtype, device=like.device).normal_(generator=generator)

        found: list[Tensor | Factors | None] = []
        for i, (source, moves) in enumerate(zip(sources, chosen, strict=True)):
            if not moves:
                found.append(None)
            elif i in self.matrices:
                out, into = source.shape
                a = normal(out, self.how.rank, like=source) / self.how.rank**0.5
                found.append(Factors(a, normal(into, self.how.rank, like=source)))
            else:
                found.append(normal(*source.shape, like=source))
        return found

    def add_to(self, found: list[Any], members: range, c: Tensor, wanted: Sequence[bool]) -> None:
        """Add c E to gradients, summed over some perturbations, which are drawn again; c is (members, rows)."""
        sources, batch = self.cell.sources, self.rows.batch
        given = len(sources) - len(self.cell.own)
        for i, it in enumerate(self.stacked(members, [source.requires_grad for source in sources])):
            if it is None or not wanted[i]:
                continue
            if found[i] is None:
                found[i] = torch.zeros_like(sources[i], requires_grad=False)
            if isinstance(it, Factors):
                a = it.a * c.sum(1).to(it.a.dtype).view(-1, 1, 1)
                found[i].addmm_(a.movedim(0, 1).flatten(1), it.b.movedim(0, 1).flatten(1).mT)
                continue
            own = i < given and batch is not None and it.shape[1:2] == (batch,)
            factor = (c if own else c.sum(1)).to(it.dtype)
            found[i] += torch.einsum("kb,kb...->b..." if own else "k,k...->...", factor, it)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tuple(tensors))


class LowRankRecursion(RecursionNode):
    """The node of a `LowRankPass`; it keeps the tangents of the last state."""

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        """Return the mean over the population of (g . u) E, E drawn again."""
        refuse_second_derivative("LowRankES")
        run, (u,) = ctx.run, ctx.saved_tensors
        run.frozen.check()
        wanted = list(ctx.needs_input_grad[3:])
        with Untouched(run.cell.cell, run.conditions):
            g = run.rows.join(cotangents)
            c = torch.where((g == 0).all(dim=1), 0.0, torch.einsum("krf,rf->kr", u, g) / len(u))
            found: list[Any] = [None] * len(run.cell.sources)
            for members in run.chunks():
                run.add_to(found, members, c[members.start : members.stop], wanted)
        return None, None, None, *found
