"""Truncated backpropagation through time: differentiate the last updates only, run the earlier ones without a graph."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loopgrad.gradients import tree
from loopgrad.gradients.agreement import agree
from loopgrad.gradients.by_sample import BySample, lengths_of
from loopgrad.gradients.checks import check_int, is_int, only_one
from loopgrad.gradients.contract import Estimator, Rollout, Stats, may_differentiate, period_of, run
from loopgrad.gradients.graphs import requires_grad
from loopgrad.gradients.observed import run_watched
from loopgrad.gradients.scoped import changed_by, run_scoped
from loopgrad.gradients.scopes import Scope
from loopgrad.gradients.stepwise import asks
from loopgrad.gradients.stopped import Before
from loopgrad.gradients.windows import in_windows, overlapping


@dataclass(frozen=True)
class TruncatedBPTT(Estimator):
    r"""Truncated backpropagation through time.

    .. math:: \sum_{t=T-k}^{T-1} (\partial_\theta f_t)^T J_{t+1}^T \cdots J_{T-1}^T g

    The last k terms of `BPTT`'s sum: the first T - k updates run without a graph, z_{T-k} is a constant and the rest
    are differentiated exactly. k >= T is `BPTT`. HRM's one-step gradient is num_steps=2 (the last z_L update and the
    last z_H update), TRM's last loop is num_cycles=1. With `lengths` they are the last k updates of each sample.

    Args:
        num_steps: k, the number of last updates that are differentiated, at least 1.
        num_cycles: k in cycles of the cell: k = num_cycles * cell.period. Give one of the two.
        scope: Which updates are differentiated, in place of a number of last ones: `LastOf` (so many of each stream),
            `EveryCycle` or `RandomUpdates`. Of the last state alone.
        every: With a readout that is asked on the way (`save`), TBPTT(k1, k): after every k1 updates (cycles, with
            num_cycles), and at the end, the answers of these go back k updates from there, each such window from a
            state that counts as a constant. None for k1 = k. Of no effect on the gradient of the last state.

    Cost:
        T cell evaluations, min(k, T) vjps; saves the graph of k updates, O(k). With `lengths` it saves that of every
        update that is among the last k of a sample; of answers on the way there is one window more for each number of
        updates at which none ends.
    Not recommended when:
        The Jacobians of the dropped updates do not shrink what they are multiplied with, that is when
        the spectral radius of the cell's Jacobian is near or above one: the dropped terms are then as large as the
        kept ones. A state that converges does not repair this: the one-step gradient stays biased at a fixed point.
        The initial state gets no gradient (None) unless k >= T: a learned z_0 does not train.
    Reference:
        Williams and Peng 1990, Neural Computation 2(4); Wang et al. 2025, arXiv 2506.21734; Jolicoeur-Martineau 2025,
        arXiv 2510.04871.

    Raises:
        ValueError: Not exactly one of num_steps, num_cycles and scope is given, or a number is below 1; at a call:
            scope is given, and `save` asks for more than the last state.
        TypeError: A number is not an int, or scope is no `Scope`.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import Stationary, TruncatedBPTT
        >>> w = torch.tensor([0.5], requires_grad=True)
        >>> cell = Stationary(lambda z, x: w * z + x, parameters=[w])
        >>> rollout = TruncatedBPTT(num_steps=1)(cell, torch.zeros(1, 1), torch.ones(1, 1), num_steps=3)
        >>> torch.autograd.grad(rollout.state.sum(), w)[0]  # z_2 = 1.5 alone; BPTT adds w * z_1 = 0.5
        tensor([1.5000])
    """

    num_steps: int | None = None
    num_cycles: int | None = None
    every: int | None = None
    scope: Scope | None = None

    kind = "biased"
    memory = "O(k)"
    references = ("williams1990efficient", "wang2025hierarchical", "jolicoeurmartineau2025less")
    not_differentiated = ("state",)
    outputs = "emitted"

    def __post_init__(self) -> None:
        hint = "num_steps=2 is HRM's one-step gradient, num_cycles=1 is TRM's last loop"
        given = {"num_steps": self.num_steps, "num_cycles": self.num_cycles, "scope": self.scope}
        name, k = only_one("TruncatedBPTT", hint, **given)
        if name == "scope":
            if not isinstance(k, Scope) or self.every is not None:
                raise TypeError(
                    f"TruncatedBPTT(scope={k!r}, every={self.every!r}) takes a Scope, such as LastOf, EveryCycle or "
                    "RandomUpdates, and no every"
                )
            return
        if not is_int(k):
            raise TypeError(f"TruncatedBPTT({name}=...) must be an int, got {k!r}")
        if k < 1:
            raise ValueError(f"TruncatedBPTT({name}={k}) must be at least 1: at 0 nothing would be differentiated")
        if self.every is not None:
            check_int("TruncatedBPTT", "every", self.every, 1)

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Run the first updates without a graph, the last ones under autograd."""
        if self.scope is not None:
            return self._in_scope(self.scope, cell, state, inputs, num_steps)
        if num_steps and asks(inputs) and may_differentiate(cell, state, inputs):
            length = self.length(cell, num_steps)
            every = length if self.every is None else self.every * (self._unit(cell))
            lengths, dims = lengths_of(cell) or (None, ())
            windows = overlapping(num_steps, every, length, lengths)
            return in_windows(cell, state, inputs, num_steps, windows, type(self).__name__, dims=dims)
        # a tensor that the cell hides is truncated too
        first, rows = num_steps - self.length(cell, num_steps) if torch.is_grad_enabled() else 0, None
        if first:
            rows = BySample.of(cell, num_steps, lambda n: range(n - self.length(cell, n), n), False)
            first = first if rows is None else rows.first
        if first:
            state = run_watched(cell, state, inputs, range(first))
        before, updates = Before(tree.flatten(state)[0]), range(first, num_steps)
        last = run(cell, state, inputs, updates) if rows is None else rows.run(cell, state, inputs, updates)
        leaves = tree.flatten(last)[0]
        if not any(map(requires_grad, leaves)):
            return Rollout(last, Stats(num_steps, vjps=0))
        vjps = len(updates) if rows is None else rows.vjps
        return Rollout(last, Stats(num_steps, vjps, stopped=before.stopped(leaves)))

    def _in_scope(self, scope: Scope, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        if asks(inputs):
            raise ValueError(
                "TruncatedBPTT(scope=...) has the gradient of the last state alone: give num_steps, which may overlap "
                '(every=...), for what `save` asks for, or save="last"'
            )
        if not num_steps or not torch.is_grad_enabled():
            return Rollout(run(cell, state, inputs, range(num_steps)), Stats(num_steps, vjps=0))
        period = period_of(cell)
        changed = changed_by(cell, state, inputs, num_steps) if scope.by_stream else [frozenset()] * period
        if scope.generator is not None:
            agree(scope.generator, cell)
        rows = BySample.of(cell, num_steps, lambda n: scope.updates(n, changed), True)
        if rows is None:
            updates = scope.updates(num_steps, changed)
            last, vjps = run_scoped(cell, state, inputs, num_steps, updates), len(updates)
        else:
            last, vjps = rows.run(cell, state, inputs, range(num_steps)), rows.vjps
        vjps = vjps if any(map(requires_grad, tree.flatten(last)[0])) else 0
        return Rollout(last, Stats(num_steps + min(period, num_steps) * scope.by_stream, vjps))

    def length(self, cell: nn.Module, num_steps: int) -> int:
        """Return how many of the last updates of `cell` are differentiated, out of `num_steps`: k, or all of them.

        With a scope, how far back the first of them may lie: all.
        """
        if self.scope is not None:
            return num_steps
        k = self.num_steps if self.num_steps is not None else self.num_cycles
        return min((k or 1) * self._unit(cell), num_steps)

    def _unit(self, cell: nn.Module) -> int:
        return 1 if self.num_cycles is None else period_of(cell)
