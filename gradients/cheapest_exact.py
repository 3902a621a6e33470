"""The cheapest exact way through a recursion that fits a number of bytes: all graphs, checkpoints, or undoing."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from loopgrad.gradients import budget
from loopgrad.gradients.checkpointed import CheckpointedBPTT, saving_of
from loopgrad.gradients.contract import Estimator, Rollout, Stats, may_differentiate
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.invertible import undoing
from loopgrad.gradients.reversible import ReversibleBPTT
from loopgrad.gradients.stored_states import StoredStates

OWNER = "CheapestExact(memory_budget={!r})"


@dataclass(frozen=True)
class CheapestExact(Estimator):
    """BPTT's gradient, in the way of fewest cell evaluations whose foreseen peak fits a budget.

    With T updates: all graphs, T evaluations, where they fit; else the checkpoints that `CheckpointedBPTT` takes within
    the budget; or `ReversibleBPTT`, 2T evaluations, where the cell can be undone exactly and checkpoints need more.

    Args:
        memory_budget: Bytes of the recursion, or a string such as "24GiB". Weights, their optimiser and what lies
            around the recursion are not in it: `loopgrad plan` says what they leave of a device.

    Cost:
        T vjps and from T evaluations on, 2T where about sqrt T states fit; in each forward pass one evaluation and one
        vjp more for each update of a cycle, from which the peak is foreseen. Memory as the budget has it.
    Not recommended when:
        The choice is always the same and a cycle is not much shorter than the recursion: `loopgrad plan` names it, and
        it saves the trace.
    Reference:
        Chen et al. 2016, arXiv 1604.06174; Griewank and Walther 2000, ACM TOMS 26(1); Gomez et al. 2017,
        arXiv 1707.04585.

    Raises:
        ValueError: memory_budget is not a positive number of bytes; or too small for any of the three, and the message
            gives the least that is not.
        RuntimeError: As `CheckpointedBPTT` and `ReversibleBPTT`.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import CheapestExact, Stationary
        >>> linear = torch.nn.Linear(64, 64)
        >>> cell = Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear)
        >>> z, x = torch.zeros(32, 64), torch.ones(32, 64)
        >>> [CheapestExact(size)(cell, z, x, num_steps=256).stats.cell_evaluations for size in ("16MiB", "512KiB")]
        [257, 513]
    """

    memory_budget: int | str

    kind = "exact"
    memory = "O(T)"
    references = ("chen2016training", "griewank2000algorithm", "gomez2017reversible")
    outputs = "emitted"
    by_sample = False

    def __post_init__(self) -> None:
        budget.parse_bytes(self.memory_budget, OWNER)

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Trace a cycle, choose, and run the recursion so."""
        checkpointed = CheckpointedBPTT()
        if num_steps == 0 or not may_differentiate(cell, state, inputs):
            return checkpointed.rollout(cell, state, inputs, num_steps)
        functional, stats = FunctionalCell(cell, state, inputs), Stats(0, 0)
        footprint = budget.trace(functional, num_steps, StoredStates(None, False), stats, saving_of(inputs))
        allowed = budget.parse_bytes(self.memory_budget)
        schedule = budget.choose(footprint, num_steps, allowed, OWNER.replace("{!r}", repr(self.memory_budget)))
        own = undoing(cell)
        undone = own is not None and own.exact and (own.safe_length is None or own.safe_length >= num_steps)
        if undone and schedule is not None and schedule.evaluations > 2 * num_steps:
            rollout = ReversibleBPTT().rollout(cell, state, inputs, num_steps)
            rollout.stats.cell_evaluations += stats.cell_evaluations
            rollout.stats.vjps += stats.vjps
            return rollout
        return checkpointed.scheduled(schedule, functional, inputs, num_steps, stats)
