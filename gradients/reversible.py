"""Reversible backpropagation through time: the exact gradient from the last state, by undoing update after update."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from loopgrad.gradients.cell_call import takes
from loopgrad.gradients.checks import check_choice, is_int
from loopgrad.gradients.contract import Estimator, Rollout, Stats, may_differentiate, run
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import requires_grad
from loopgrad.gradients.invertible import undoing
from loopgrad.gradients.recursion_node import joined
from loopgrad.gradients.reversible_sweep import ReversiblePass, ReversibleRecursion
from loopgrad.gradients.stepwise import callers, without_graphs


@dataclass(frozen=True)
class ReversibleBPTT(Estimator):
    """Backpropagation through time in memory that does not grow with the number of updates.

    Forward keeps the last state only. Backward undoes one update after the other: one evaluation of the cell serves to
    reconstruct z_t from z_{t+1} and to take the vector-Jacobian product at z_t. Needs an `Invertible` cell, such as
    `Damped(cell)`, `Leapfrog(cell)` or `Momentum(cell)` of `loopgrad.models`, whose default arithmetic makes the
    reconstruction exact to the last bit, and the gradient bit for bit that of `BPTT` through the same coupled cell.
    The whole recursion is one autograd.Function: each parameter receives one gradient.

    Args:
        verify: What to do if the first state, or an anchor, is not met again in backward, which is when something in
            the cell differed between its two runs (a kernel that is not deterministic, a hidden generator) and the
            gradient is wrong: "raise", "warn" or "off". Costs one comparison of two states, for each anchor too. In
            floating-point arithmetic a difference below 0.1 of the largest value in it and in the last state is taken
            for rounding.
        anchors: Keep a state every so many updates and go on from it in backward; for arithmetic that rounds.

    Cost:
        2T cell evaluations and T vjps, 4/3 of BPTT's FLOPs. Saves the last state, and the digits that damping loses
        (about log2(d/n) bits per element and update for a factor n/d; none for `Leapfrog`); T / anchors states with
        anchors. During backward the graph of one update lives beside them. A cell that draws random numbers adds a
        generator state per update (5 kB on CPU, 16 B on CUDA).
    Not recommended when:
        The recursion itself is given and must not change, for a coupled recursion is another model:
        use `CheckpointedBPTT`; its states would fit anyway; second derivatives are needed.
    Reference:
        Gomez et al. 2017, arXiv 1707.04585; Maclaurin et al. 2015, arXiv 1502.03492.

    Raises:
        TypeError: The cell is not invertible.
        ValueError: verify or anchors is not one of the above; or num_steps is more than the cell's arithmetic can undo.
        RuntimeError: The first state was not met again; the cell changes its state, inputs or buffers in place, or
            keeps state outside the state; something that it reads was changed before backward, or is a tensor that
            requires grad and could not be followed; or backward got create_graph=True.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import ReversibleBPTT, Stationary
        >>> from loopgrad.models import Damped
        >>> linear = torch.nn.Linear(3, 3)
        >>> cell = Damped(Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear))
        >>> rollout = ReversibleBPTT()(cell, torch.zeros(2, 3), torch.ones(2, 3), num_steps=1024)
        >>> rollout.state.sum().backward()  # the first state was met again, bit for bit, or this would raise
    """

    verify: Literal["raise", "warn", "off"] = "raise"
    anchors: int | None = None

    kind = "exact"
    memory = "O(1)"
    references = ("gomez2017reversible", "maclaurin2015gradient")
    outputs = "emitted"
    by_sample = False

    def __post_init__(self) -> None:
        check_choice("ReversibleBPTT", "verify", self.verify, ("raise", "warn", "off"))
        if self.anchors is not None and not is_int(self.anchors, 1):
            raise ValueError(
                f"ReversibleBPTT(anchors={self.anchors!r}) must be the number of updates between two kept states, "
                "an int of at least 1, or None"
            )

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Run the recursion, keeping nothing but its last state."""
        name = type(callers(cell)).__name__
        own = undoing(cell)
        if own is None:
            raise TypeError(
                f"ReversibleBPTT needs a cell that can be undone, and {name} cannot: wrap it as Damped({name}(...)), "
                "Leapfrog or Momentum (loopgrad.models), make it Invertible, or use CheckpointedBPTT()"
            )
        if not takes(callers(cell).forward, 4):
            raise TypeError(f"{name}.forward must take (state, inputs, step, undo=None): see Invertible")
        if num_steps == 0 or not may_differentiate(cell, state, inputs):
            return Rollout(run(cell, state, inputs, range(num_steps)), Stats(cell_evaluations=num_steps, vjps=0))
        safe, length = own.safe_length, min(num_steps, self.anchors or num_steps)
        if safe is not None and length > safe:
            raise ValueError(
                f"the arithmetic of this {name} can undo {safe} updates, not num_steps={num_steps}: "
                f"each multiplies the rounding error. Use arithmetic='exact', ReversibleBPTT(anchors={safe}) or fewer, "
                "or CheckpointedBPTT()"
            )
        functional, answers = FunctionalCell(cell, state, inputs), without_graphs(inputs)
        forward = ReversiblePass(functional, self, num_steps, None if answers is None else answers.saving)
        last, kept = forward.run(inputs)
        leaves = joined(ReversibleRecursion, forward, last, kept, functional.sources, answers)
        passes = 2 if any(map(requires_grad, leaves)) else 1
        return Rollout(functional.unflatten_state(leaves), Stats(passes * num_steps, vjps=(passes - 1) * num_steps))
