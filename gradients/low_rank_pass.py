"""The recursions of `LowRankES`: what each perturbation is, where it enters, and the gradient that it gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from loopgrad.gradients.agreement import agreed_seed, is_split
from loopgrad.gradients.central_differences import check_precision, run_moved
from loopgrad.gradients.checks import check_unchanged, refuse_second_derivative, versions_of
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import merged
from loopgrad.gradients.noise import fresh_seed
from loopgrad.gradients.observed import Frozen, frozen_parameters, seeing_all
from loopgrad.gradients.recompute import Conditions
from loopgrad.gradients.recursion_node import RecursionNode
from loopgrad.gradients.row_layout import RowLayout
from loopgrad.gradients.untouched import Mode, Untouched


@dataclass(frozen=True)
class Factors:
    """A perturbation A B^T of a matrix, with 1 / sqrt(rank) in A."""

    a: Tensor
    b: Tensor


class Uses(Mode):
    """Notes how torch calls are given some tensors.

    Attributes:
        other: Numbers of those that are given to another call than as the weight of F.linear.
        linear: Numbers of those that are given to it.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        super().__init__()
        self._numbers = {id(tensor): number for number, tensor in enumerate(tensors)}
        self.linear: set[int] = set()
        self.other: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the call, and note it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") == "__get__":  # a shape, a dtype
            self._note([result], self.other)
            return result
        if func is F.linear:
            _, weight, bias = _of_linear(*args, **kwargs)
            self._note([weight], self.linear)
            self._note([args[0] if args else kwargs["input"], bias], self.other)
        else:
            self._note([*args, *kwargs.values()], self.other)
        return result

    def _note(self, values: Sequence[Any], where: set[int]) -> None:
        for value in values:
            if isinstance(value, list | tuple):
                self._note(value, where)
            elif id(value) in self._numbers:
                where.add(self._numbers[id(value)])


class Carrying(Mode):
    """Adds x B A^T times a factor to what F.linear returns for some weights."""

    def __init__(self, tensors: Sequence[Tensor], factors: dict[int, Factors], by: float):
        super().__init__()
        self._factors = {id(tensors[number]): it for number, it in factors.items()}
        self._by = by

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the call."""
        kwargs = kwargs or {}
        if func is not F.linear:
            return func(*args, **kwargs)
        x, weight, bias = _of_linear(*args, **kwargs)
        found = F.linear(x, weight, bias)
        factors = self._factors.get(id(weight))
        if factors is None:
            return found
        narrow = F.linear(x, factors.b.mT)  # (..., rank)
        rows = narrow.reshape(-1, narrow.shape[-1])
        return torch.addmm(found.reshape(-1, found.shape[-1]), rows, factors.a.mT, alpha=self._by).view_as(found)


def _of_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


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
        if any(is_split(source) for source in sources):
            raise RuntimeError(
                "LowRankES cannot move weights that tensor parallelism has split: use CheckpointedBPTT()"
            )
        given = cell, self.num_steps
        uses = Uses(cell.others)
        last = run_moved(*given, cell.state, cell.others, {}, self.rows, None, 0.0, None, lambda _: uses, "LowRankES")
        self.stats.cell_evaluations += self.num_steps
        if not any(chosen):
            return last, None
        own = range(cell.num_inputs, len(cell.others))
        self.matrices = frozenset(width + i for i in own if i in uses.linear - uses.other and cell.others[i].dim() == 2)
        middle, found = self.rows.join(last), []
        for k in range(how.population):
            drawn, ends = self.drawn(k, sources, chosen), []
            factors = {i - width: it for i, it in enumerate(drawn) if isinstance(it, Factors)}
            for sigma in (how.sigma, -how.sigma) if how.antithetic else (how.sigma,):
                moved = [t + sigma * it if isinstance(it, Tensor) else t for t, it in zip(sources, drawn, strict=True)]

                def around(tensors: Sequence[Tensor], factors: Any = factors, sigma: float = sigma) -> Carrying:
                    return Carrying(tensors, factors, sigma)

                with self.conditions.restored(cell.cell) as buffers:
                    start = merged(moved[:width], cell.state)
                    end = run_moved(
                        *given, start, moved[width:], buffers, self.rows, None, sigma, None, around, "LowRankES"
                    )
                self.stats.cell_evaluations += self.num_steps
                ends.append(self.rows.join(end))
            other, steps = (ends[1], 2) if how.antithetic else (middle, 1)
            found.append((ends[0] - other) / (steps * how.sigma))
        check_unchanged(sources, versions, "its updates cannot be run again")
        return last, torch.stack(found)

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
            g, rows, sources = run.rows.join(cotangents), run.rows, run.cell.sources
            given = len(sources) - len(run.cell.own)
            c = torch.where((g == 0).all(dim=1), 0.0, torch.einsum("krf,rf->kr", u, g) / len(u))
            found: list[Any] = [None] * len(sources)
            for k in range(len(u)):
                for i, it in enumerate(run.drawn(k, sources, [source.requires_grad for source in sources])):
                    if it is None or not wanted[i]:
                        continue
                    if found[i] is None:
                        found[i] = torch.zeros_like(sources[i], requires_grad=False)
                    if isinstance(it, Factors):
                        found[i].addmm_(it.a * c[k].sum().to(it.a.dtype), it.b.mT)
                        continue
                    own = i < given and rows.batch is not None and it.shape[:1] == (rows.batch,)
                    factor = c[k].view(-1, *[1] * (it.dim() - 1)) if own else c[k].sum()
                    found[i].addcmul_(it, factor.to(it.dtype))
        return None, None, None, *found
