"""A recursion that has been run already, as one node of autograd's graph."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients.graphs import is_floating, merged, requires_grad
from loopgrad.gradients.outputs import Answers


class RecursionNode(torch.autograd.Function):
    """sources -> floating leaves of the last state; subclasses say in `backward` how the sources get their gradients.

    One node, so that autograd keeps nothing of the updates and hands each source one gradient. Applied by `joined`.
    """

    @staticmethod
    def forward(ctx: Any, run: Any, last: Sequence[Any], kept: Sequence[Tensor], *sources: Any) -> Any:
        """Hand on the last state; backward finds `run` in ctx and `kept` among its saved tensors."""
        ctx.set_materialize_grads(False)
        ctx.run = run
        ctx.save_for_backward(*kept)  # which frees them in time, and notices if they are written to
        return tuple(leaf.detach() for leaf in last if is_floating(leaf))


def joined(
    node: type[RecursionNode],
    run: Any,
    last: Sequence[Any],
    kept: Sequence[Tensor],
    sources: Sequence[Tensor],
    answers: Answers | None = None,
) -> list[Any]:
    """Return the leaves of the last state with the graph of a node; as they are if no source requires grad.

    Args:
        node: Applied to the rest.
        run: What backward needs beside tensors.
        last: Leaves of the last state.
        kept: Tensors that backward needs.
        sources: What the last state is differentiated by.
        answers: What a readout gave; they get the graph too, their gradients come after those of the last state.
    """
    if not any(map(requires_grad, sources)):
        return list(last)
    every = [*last, *(answers.leaves() if answers is not None else ())]
    found = merged(node.apply(run, every, kept, *sources), every)
    if answers is not None:
        answers.replace(found[len(last) :])
    return found[: len(last)]
