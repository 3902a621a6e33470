"""Backpropagation through time: the exact gradient, by keeping the graph of every update."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from loopgrad.gradients import tree
from loopgrad.gradients.contract import Estimator, Rollout, Stats, run
from loopgrad.gradients.graphs import requires_grad


@dataclass(frozen=True)
class BPTT(Estimator):
    r"""Backpropagation through time (full unroll).

    .. math:: \frac{dL}{d\theta} = \sum_{t=0}^{T-1} (\partial_\theta f_t)^T J_{t+1}^T \cdots J_{T-1}^T g

    with J_t = df_t / dz of the update z_{t+1} = f_t(z_t) and g = dL / dz_T: all terms, by autograd.

    Cost:
        T cell evaluations, T vjps; saves the graph of all T updates, O(T).
    Not recommended when:
        T update graphs do not fit in memory; `CheckpointedBPTT` gives the same gradient.
    Reference:
        Werbos 1990, Proc. IEEE 78(10).

    Example:
        >>> import torch
        >>> from loopgrad.gradients import BPTT, Stationary
        >>> linear = torch.nn.Linear(3, 3)
        >>> cell = Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear)
        >>> rollout = BPTT()(cell, torch.zeros(2, 3), torch.ones(2, 3), num_steps=8)
        >>> rollout.state.sum().backward()
        >>> rollout.stats
        Stats(cell_evaluations=8, vjps=8)
    """

    kind = "exact"
    memory = "O(T)"
    references = ("werbos1990backpropagation",)
    outputs = "emitted"
    by_sample = False

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Run the recursion under autograd."""
        last = run(cell, state, inputs, range(num_steps))
        vjps = num_steps if any(map(requires_grad, tree.flatten(last)[0])) else 0
        return Rollout(last, Stats(cell_evaluations=num_steps, vjps=vjps))
