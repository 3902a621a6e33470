"""Forward-mode differentiation: the exact gradient of a few parameters, in memory that does not grow with depth."""

import difflib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.gradients.checks import check_int, refuse_complex, refuse_second_derivative
from loopgrad.gradients.compiled import refuse_compiled
from loopgrad.gradients.contract import Estimator, Rollout, may_differentiate, run
from loopgrad.gradients.fingerprint import Fingerprints
from loopgrad.gradients.forward_recursion import ForwardStats
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import is_floating
from loopgrad.gradients.observed import seeing_all
from loopgrad.gradients.recompute import Conditions
from loopgrad.gradients.recursion_node import RecursionNode, joined
from loopgrad.gradients.row_layout import RowLayout
from loopgrad.gradients.stepwise import callers
from loopgrad.gradients.tangents import carry, chunks


@dataclass(frozen=True)
class ForwardMode(Estimator):
    r"""Forward-mode differentiation (RTRL): exact, one tangent per number that is differentiated.

    .. math:: \frac{dL}{dp} = g \cdot u_T, \qquad u_{t+1} = J_z u_t + J_p, \quad u_0 = 0

    for each of P numbers p beside the state, with g the cotangent of z_T. For step sizes, damping, gains, halting
    biases and hyperparameters: P small, state and T as large as they like.

    Args:
        parameters: Names of the parameters, as in cell.named_parameters(); None for all that require grad.
        max_parameters: Most numbers P that are differentiated.
        chunk_size: Tangents carried at once, None for all P; the recursion runs once per chunk. Changes no number.

    Cost:
        About 1 + P forward passes at large sizes, far less where updates are small, for all tangents share one call;
        no vjps. Saves the tangents P |z_T|, the same at any depth.
        Forward values are those of `BPTT` bit for bit, except in attention, whose kernel with forward rules differs.
    Not recommended when:
        P is more than about a hundred: `BPTT` or `CheckpointedBPTT` cost the same for any P.
        Parameters that are not named, inputs and the initial state get no gradient (None): an encoder in front of the
        recursion does not train.
    Reference:
        Williams and Zipser 1989, Neural Computation 1(2); Franceschi et al. 2017, arXiv 1703.01785.

    Raises:
        ValueError: max_parameters or chunk_size is below 1; a name is not one of the cell's parameters; or there are
            more than max_parameters numbers to differentiate.
        TypeError: parameters is a str or holds something other than names; or torch.compile has compiled the cell.
        RuntimeError: An operator of the cell has no forward-mode rule; or backward got create_graph=True.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import ForwardMode, Stationary
        >>> w = torch.tensor([0.5], requires_grad=True)
        >>> cell = Stationary(lambda z, x: w * z + x, parameters=[w])
        >>> rollout = ForwardMode()(cell, torch.zeros(2, 1), torch.ones(2, 1), num_steps=2)
        >>> torch.autograd.grad(rollout.state.sum(), w)[0]
        tensor([2.])
    """

    parameters: Sequence[str] | None = None
    max_parameters: int = 512
    chunk_size: int | None = None

    kind = "exact"
    memory = "O(1)"
    references = ("williams1989learning", "franceschi2017forward")
    outputs = "carried"
    by_sample = False
    compiles = False
    not_differentiated = ("inputs", "state")

    def __post_init__(self) -> None:
        names = self.parameters
        if names is not None and (isinstance(names, str) or not all(isinstance(name, str) for name in names)):
            raise TypeError(
                f"ForwardMode(parameters={names!r}) must be None or a list of names of the cell's parameters"
            )
        check_int("ForwardMode", "max_parameters", self.max_parameters, 1)
        if self.chunk_size is not None:
            check_int("ForwardMode", "chunk_size", self.chunk_size, 1)

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Run the recursion with a tangent for each parameter beside it."""
        if not num_steps or not may_differentiate(cell, state, inputs):
            with torch.no_grad():
                return Rollout(run(cell, state, inputs, range(num_steps)), ForwardStats(num_steps, 0))
        refuse_compiled(cell, "ForwardMode")
        functional = FunctionalCell(cell, state, inputs)
        conditions, stats = Conditions(cell, [*functional.state, *functional.others]), ForwardStats(0, 0)
        last, u, chosen = seeing_all(
            functional, conditions, lambda: self._run(functional, conditions, num_steps, stats), stats, num_steps
        )
        if u is None:
            return Rollout(functional.unflatten_state(last), stats)
        rows, like = RowLayout(functional.state, per_sample=False), [(p.shape, p.dtype) for p in chosen]
        leaves = joined(_Recursion, (rows, like), last, [u], chosen)
        return Rollout(functional.unflatten_state(leaves), stats)

    def _run(
        self, cell: FunctionalCell, conditions: Conditions, num_steps: int, stats: ForwardStats
    ) -> tuple[list[Any], Tensor | None, list[Tensor]]:
        """Return the leaves of the last state, their tangents, and the tensors that these are the derivatives by."""
        chosen = self._chosen(cell.cell, cell)
        refuse_complex("ForwardMode", chosen)
        count = sum(p.numel() for p in chosen)
        if count > self.max_parameters:
            raise ValueError(
                f"ForwardMode would carry {count} tangents, one per number of {len(chosen)} parameters, and takes at "
                f"most max_parameters={self.max_parameters}: name fewer with parameters=[...], raise max_parameters, "
                "or use CheckpointedBPTT(), whose cost does not depend on how many there are"
            )
        rows, width = RowLayout(cell.state, per_sample=False), sum(map(is_floating, cell.state))
        parts, last, chunked = [], [], chunks(count, self.chunk_size) if count else [range(0)]
        prints = Fingerprints() if len(chunked) > 1 else None  # the runs must agree
        for i, chunk in enumerate(chunked):
            directions: list[Tensor | None] = [None] * (width + len(cell.others))
            start = 0
            for p in chosen if len(chunk) else ():
                place = next(i for i, tensor in enumerate(cell.others) if tensor is p)
                numbers = torch.arange(start, start + p.numel(), device=p.device)
                of_chunk = torch.arange(chunk.start, chunk.stop, device=p.device).unsqueeze(1)
                directions[width + place] = (of_chunk == numbers).to(p.dtype).view(len(chunk), *p.shape)
                start += p.numel()
            with conditions.restored(cell.cell) if i else nullcontext({}) as buffers:
                found, u = carry(
                    cell, range(num_steps), cell.state, cell.others, buffers, rows, directions, prints=prints
                )
            last = last if i else found
            parts += [] if u is None else [u]
            stats.cell_evaluations += num_steps
            stats.tangents += num_steps * len(chunk)
        if prints is not None:
            prints.judge("ForwardMode", "raise")
        return last, torch.cat(parts) if parts else None, chosen

    def _chosen(self, cell: nn.Module, functional: FunctionalCell) -> list[Tensor]:
        if self.parameters is None:
            return [tensor for tensor in functional.others[functional.num_inputs :] if tensor.requires_grad]
        every = dict(callers(cell).named_parameters())
        for name in self.parameters:
            if name not in every:
                near = difflib.get_close_matches(name, list(every), n=3, cutoff=0.0)
                raise ValueError(f"ForwardMode(parameters=...): the cell has no parameter {name!r}; nearest: {near}")
            if not every[name].requires_grad:
                raise ValueError(f"ForwardMode(parameters=...): the cell's parameter {name!r} does not require grad")
        return [every[name] for name in dict.fromkeys(self.parameters)]


class _Recursion(RecursionNode):
    """The node of the recursion, by chosen parameters; `run` is the layout of states, and their shapes and dtypes."""

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        refuse_second_derivative("ForwardMode")
        (rows, like), (u,) = ctx.run, ctx.saved_tensors
        g = rows.join(cotangents)
        u = torch.where(g == 0, 0.0, u)  # what has no part in the loss may be infinite
        parts = torch.einsum("krf,rf->k", u, g).split([shape.numel() for shape, _ in like])
        pairs = zip(parts, like, strict=True)
        return None, None, None, *(part.reshape(shape).to(dtype) for part, (shape, dtype) in pairs)
