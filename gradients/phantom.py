"""The phantom gradient: a few damped cycles, differentiated exactly, at a state that is taken as a fixed point."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loopgrad.gradients import tree
from loopgrad.gradients.checks import check_int
from loopgrad.gradients.contract import (
    Estimator,
    Rollout,
    Stats,
    check_shapes,
    may_differentiate,
    needs_gradient,
    period_of,
    run,
)
from loopgrad.gradients.graphs import is_floating, requires_grad
from loopgrad.gradients.observed import run_watched
from loopgrad.gradients.stopped import Before


@dataclass(frozen=True)
class PhantomGradient(Estimator):
    r"""Gradient of k damped applications of the cycle map f, u <- (1 - damping) u + damping f(u), from u = z_T.

    z_T is a constant in it, and the last state is z_T itself. At a fixed point it is the first k terms of a damped
    Neumann series of the implicit gradient, with d the damping and b the cotangent:

    .. math:: (\partial_\theta f)^T d \sum_{i=0}^{k-1} \left( (1 - d) + d J^T \right)^i b

    Args:
        num_steps: k, applications of the cycle map, at least 1.
        damping: In (0, 1].

    Cost:
        T + k cycles of evaluations, k cycles of vjps; saves the graph of k cycles, O(k).
    Not recommended when:
        The recursion does not settle, or settles slowly: the gradient is as biased as that of
        `TruncatedBPTT` over k cycles, which does without the extra evaluations. The initial state gets no gradient
        (None).
    Reference:
        Geng et al. 2021, arXiv 2111.05177.

    Raises:
        ValueError: num_steps or damping is out of range.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import PhantomGradient, Stationary
        >>> w = torch.tensor([0.5], requires_grad=True)
        >>> cell = Stationary(lambda z, x: w * z + x, parameters=[w])
        >>> rollout = PhantomGradient(num_steps=3)(cell, torch.zeros(1, 1), torch.ones(1, 1), num_steps=40)
        >>> torch.autograd.grad(rollout.state.sum(), w)[0]  # 2 (1 + w + w^2) of 2 / (1 - w) = 4
        tensor([3.5000])
    """

    num_steps: int = 5
    damping: float = 1.0

    kind = "biased"
    memory = "O(k)"
    references = ("geng2021training",)
    not_differentiated = ("state",)
    lengths = False

    def __post_init__(self) -> None:
        check_int("PhantomGradient", "num_steps", self.num_steps, 1)
        if not 0 < self.damping <= 1:
            raise ValueError(f"PhantomGradient(damping={self.damping}) must be in (0, 1]")

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Run the recursion without a graph, and the damped cycles with one."""
        period = period_of(cell)
        if num_steps < period or not may_differentiate(cell, state, inputs):  # less than a cycle is taken exactly
            vjps = num_steps * needs_gradient(cell, state, inputs)
            return Rollout(run(cell, state, inputs, range(num_steps)), Stats(num_steps, vjps))
        last = run_watched(cell, state, inputs, range(num_steps))
        leaves, unflatten = tree.flatten(last)
        ahead, before, steps = leaves, Before(leaves), []
        for count in range(1, self.num_steps + 1):
            after = run(cell, unflatten(ahead), inputs, range(num_steps - period, num_steps))
            check_shapes("PhantomGradient", last, after)
            image = tree.flatten(after)[0]
            if not any(map(requires_grad, image)):  # nothing to differentiate, and so in any further cycle
                return Rollout(last, Stats(num_steps + count * period, vjps=0))
            steps.append(Before(ahead).moved(image))
            ahead = [self._damped(*pair) for pair in zip(ahead, image, strict=True)]
        extra, found = self.num_steps * period, before.stopped(ahead)
        residual = None if None in steps else torch.stack(steps).amax(dim=0)
        pairs = zip(leaves, ahead, strict=True)
        state = unflatten([_WithGradientOf.apply(z, u) if is_floating(z) else z for z, u in pairs])
        return Rollout(state, Stats(num_steps + extra, vjps=extra, stopped=found, residual=residual))

    def _damped(self, old: Any, new: Any) -> Any:
        return new if self.damping == 1 or not is_floating(new) else old + self.damping * (new - old)


class _WithGradientOf(torch.autograd.Function):
    """A value with the gradient of another."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        return None, gradients[0]
