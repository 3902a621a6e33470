"""What online estimators share: nothing of an update is kept, for its influence goes forward with the state."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from loopgrad.gradients.checks import check_choice, check_int
from loopgrad.gradients.columns import Columns
from loopgrad.gradients.compiled import refuse_compiled
from loopgrad.gradients.contract import Estimator, Rollout, may_differentiate, run
from loopgrad.gradients.forward_recursion import ForwardStats
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.influence import Carried
from loopgrad.gradients.online_pass import OnlinePass, OnlineRecursion
from loopgrad.gradients.patterns import Patterns
from loopgrad.gradients.recursion_node import joined


@dataclass(frozen=True)
class Online(Estimator):
    """An estimator that carries J_t = dz_t/dp, or something in place of it, forward in time.

    Attributes:
        scope: "sample" if samples do not see each other, "batch" if they do.
        max_numbers: Most numbers that the tangents of an update may hold.
        needs_pattern: Whether the estimate depends on where derivatives are zero, and not the cost alone.
        passes: What runs the updates.
    """

    scope: Literal["sample", "batch"] = field(default="sample", kw_only=True)
    max_numbers: int = field(default=2**28, kw_only=True)

    memory = "O(1)"
    outputs = "carried"
    compiles = False
    needs_pattern: ClassVar[bool] = False
    passes: ClassVar[type[OnlinePass]] = OnlinePass

    def __post_init__(self) -> None:
        check_choice(type(self).__name__, "scope", self.scope, ("sample", "batch"))
        check_int(type(self).__name__, "max_numbers", self.max_numbers, 1)

    def check_size(self, columns: Columns, patterns: Patterns | None, rows: int) -> None:
        """Raise ValueError if the tangents of an update of so many rows would hold more than max_numbers.

        Without patterns it is not known yet which columns are pushed together, and the least that there may be counts.
        """
        tangents = columns.features + 1 + (0 if patterns is None else patterns.colours[1])
        numbers = tangents * (columns.width + rows * columns.features)
        if numbers > self.max_numbers:
            least = "at least " if patterns is None else ""
            raise ValueError(
                f"{type(self).__name__} would carry {least}{tangents} tangents of {columns.width} numbers and {rows} "
                f"states of {columns.features} through an update, {numbers} in all, and takes at most "
                f"max_numbers={self.max_numbers}: raise it, or use CheckpointedBPTT(), which carries none"
            )

    @abstractmethod
    def carried(self, columns: Columns, patterns: Patterns, like: Tensor) -> Carried:
        """Return what is carried, as it is before the first update; `like` is the state, (rows, features)."""

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Run the updates with the influence beside them."""
        if num_steps == 0 or not may_differentiate(cell, state, inputs):
            return Rollout(run(cell, state, inputs, range(num_steps)), ForwardStats(num_steps, 0))
        refuse_compiled(cell, type(self).__name__)
        functional, stats = FunctionalCell(cell, state, inputs), ForwardStats(0, 0)
        forward = self.passes(functional, num_steps, self, stats)
        last, kept = forward.run()
        leaves = joined(OnlineRecursion, forward, last, kept, functional.sources)
        return Rollout(functional.unflatten_state(leaves), stats)


def everywhere(pattern: Tensor) -> Tensor:
    """Return where J may be other than zero, if nothing is known of how features act on one another."""
    return pattern.any(0, keepdim=True).expand_as(pattern)


def of_columns(columns: Columns, patterns: Patterns) -> tuple[Tensor, Tensor]:
    """Return (features, columns) where updates act immediately, and that with the identity of the initial state."""
    pattern = columns.spread(patterns.update)
    kept = pattern.clone()
    kept[columns.of_state[1], columns.of_state[0]] = True
    return pattern, kept
