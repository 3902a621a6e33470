"""Checkpointed backpropagation through time: the gradient from a few stored states, by computing twice."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from loopgrad.gradients import budget
from loopgrad.gradients.checkpointed_backward import CheckpointedPass, CheckpointedRecursion
from loopgrad.gradients.checks import check_choice, is_int
from loopgrad.gradients.compression import FORMS
from loopgrad.gradients.contract import Estimator, Rollout, Stats, may_differentiate, run
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import requires_grad
from loopgrad.gradients.outputs import Saving
from loopgrad.gradients.recursion_node import joined
from loopgrad.gradients.schedule import Schedule, binomial, segments
from loopgrad.gradients.stepwise import asks, without_graphs
from loopgrad.gradients.stored_states import StoredStates


@dataclass(frozen=True)
class CheckpointedBPTT(Estimator):
    r"""Backpropagation through time with checkpoints: BPTT's gradient, bit for bit on CPU.

    The recursion is cut into segments of k updates and only the state at the start of each is stored. Backward runs a
    segment again from its stored state, this time with a graph, takes its vector-Jacobian product and goes on to
    the segment before it. The whole recursion is one autograd.Function: each parameter receives one gradient.
    Sums are taken in BPTT's own order, so that the bits agree too, unless the state holds one tensor in two places.

    With `kept` it is biased. The forward pass is exact, and segment F_i is differentiated from h_i on, the stored state
    as it is restored, in place of z:

    .. math:: \lambda_i = (\partial_z F_i)^T |_{h_i} \lambda_{i+1}, \quad
       \frac{dL}{d\theta} \approx \sum_i (\partial_\theta F_i)^T |_{h_i} \lambda_{i+1}

    h_i is within 2^-9 of each number (bfloat16), or within half of a 127th of the greatest of its row (int8). What that
    does to the gradient depends on how the updates of a segment take it on. Schedules that store states again
    ("binomial", a budget) round them each time.

    Args:
        schedule: "sqrt" for segments of ceil(sqrt T) updates; k, the number of updates in a segment; or "binomial".
        num_snapshots: With "binomial", the number c of states stored at most beside z_0 and the working state, the one
            that the next update starts from (z_{T-1} between forward and backward).
        memory_budget: Bytes, or a string such as "512MiB": traces the updates of one cycle and picks the schedule of
            fewest evaluations whose foreseen peak fits. Counts what forward and backward allocate, not the loss's own
            tensors, an operator's internal scratch or an allocator's rounding.
        offload: "cpu" to keep stored states of an accelerator in host memory. Has not been run on a GPU.
        verify: What to do if a segment that is run again does not end in the state it ended in before, which is when
            something outside the state differed between the two runs and the gradient is wrong: "raise", "warn" or
            "off". Costs a product with a vector per stored state, and one wait for the device in backward. With `kept`
            it is the first segment alone that is met again.
        kept: "bfloat16" or "int8" to store the states in a short form, as `CompressedBPTT` does: the gradient is then
            close, and no longer exact. z_0, ints, leaves of one dimension and rows of fewer than 8 numbers stay.

    Cost:
        2T cell evaluations and T vjps, 4/3 of BPTT's FLOPs. Saves ceil(T / k) states, O(sqrt T) at "sqrt"; during
        backward the graph of one segment of k updates lives beside them. "binomial": T + 1 + r T - C(s + r, r - 1)
        evaluations, s = c + 1 and r smallest with C(s + r, s) >= T; memory O(c) with one update graph. A budget adds
        one evaluation and one vjp for each update of a cycle; its memory is O(1) in T except for the inputs. With
        retain_graph=True the states that forward stored stay, up to c more. A stored state of float32 takes half its
        bytes with kept="bfloat16", and with "int8" a byte for each number and four for each row.
    Not recommended when:
        T update graphs fit in memory anyway; the cell draws from a generator of its own or depends
        on Python state that changes from call to call (the second run would differ, and is refused); second derivatives
        are needed. `kept`, where all states fit as they are, or fewer segments do: it is for recursions whose states
        are the memory, long ones or such with a large state.
        Under autocast the weights are cast anew at each update of backward, and their gradients are summed in the
        weight's own dtype: closer to the exact sum than BPTT's, which adds up the low-precision casts.
    Reference:
        Chen et al. 2016, arXiv 1604.06174; Griewank and Walther 2000, ACM TOMS 26(1); Gruslys et al. 2016,
        arXiv 1606.03401.

    Raises:
        ValueError: An argument is not one of those above, or does not go with another; or the budget is too small.
        RuntimeError: The cell changes its state or inputs in place; keeps state outside the state, or a segment did not
            end where it had ended; something that it reads was changed before backward, or is a tensor that requires
            grad and could not be followed; or backward is asked for a graph of itself (create_graph=True).

    Example:
        >>> import torch
        >>> from loopgrad.gradients import CheckpointedBPTT, Stationary
        >>> linear = torch.nn.Linear(3, 3)
        >>> cell = Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear)
        >>> rollout = CheckpointedBPTT()(cell, torch.zeros(2, 3), torch.ones(2, 3), num_steps=16)
        >>> rollout.state.sum().backward()
        >>> rollout.stats
        Stats(cell_evaluations=32, vjps=16)
    """

    schedule: Literal["sqrt", "binomial"] | int = "sqrt"
    num_snapshots: int | None = None
    memory_budget: int | str | None = None
    offload: Literal["cpu"] | None = None
    verify: Literal["raise", "warn", "off"] = "raise"
    kept: Literal["bfloat16", "int8"] | None = None

    kind = "exact"
    memory = "O(sqrt T)"
    references = ("chen2016training", "griewank2000algorithm", "gruslys2016memory")
    outputs = "emitted"
    by_sample = False

    def __post_init__(self) -> None:
        if self.schedule not in ("sqrt", "binomial") and not is_int(self.schedule, 1):
            raise ValueError(
                f'CheckpointedBPTT(schedule={self.schedule!r}) must be "sqrt", "binomial" or the number of updates in '
                "a segment, an int of at least 1"
            )
        if self.schedule == "binomial" and not is_int(self.num_snapshots, 0):
            raise ValueError(
                f'CheckpointedBPTT(schedule="binomial", num_snapshots={self.num_snapshots!r}) needs the number of '
                "states to store beside the first one: give num_snapshots, an int of at least 0"
            )
        if self.schedule != "binomial" and self.num_snapshots is not None:
            raise ValueError(
                f"CheckpointedBPTT(num_snapshots={self.num_snapshots!r}) belongs to the binomial schedule, and the "
                f'schedule is {self.schedule!r}: give schedule="binomial" too, or leave num_snapshots out'
            )
        if self.memory_budget is not None:
            budget.parse_bytes(self.memory_budget)
            if self.schedule != "sqrt" or self.num_snapshots is not None:
                raise ValueError(
                    f"CheckpointedBPTT(memory_budget={self.memory_budget!r}) chooses the schedule itself: leave out "
                    f"schedule={self.schedule!r} and num_snapshots={self.num_snapshots!r}, or the budget"
                )
        check_choice("CheckpointedBPTT", "verify", self.verify, ("raise", "warn", "off"))
        if self.offload not in (None, "cpu"):
            raise ValueError(f'CheckpointedBPTT(offload={self.offload!r}) must be "cpu" or None')
        if self.kept is not None:
            check_choice("CheckpointedBPTT", "kept", self.kept, list(FORMS))
            object.__setattr__(self, "kind", "biased")

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Run the recursion, keeping the states that the schedule stores."""
        if num_steps == 0 or not may_differentiate(cell, state, inputs):
            return Rollout(run(cell, state, inputs, range(num_steps)), Stats(cell_evaluations=num_steps, vjps=0))
        functional, stats = FunctionalCell(cell, state, inputs), Stats(0, 0)
        if self.memory_budget is not None:
            footprint = budget.trace(functional, num_steps, self.states(functional), stats, saving_of(inputs))
            schedule = budget.choose(footprint, num_steps, budget.parse_bytes(self.memory_budget))
        elif self.num_snapshots is not None:
            schedule = binomial(num_steps, self.num_snapshots)
        else:
            schedule = segments(
                num_steps, math.isqrt(num_steps - 1) + 1 if self.schedule == "sqrt" else int(self.schedule)
            )
        return self.scheduled(schedule, functional, inputs, num_steps, stats)

    def states(self, cell: FunctionalCell) -> StoredStates:
        """Return what stores the states of a recursion."""
        form = None if self.kept is None else FORMS[self.kept]
        return StoredStates(form, self.offload == "cpu", [*cell.state, *cell.others])

    def scheduled(
        self, schedule: Schedule | None, cell: FunctionalCell, inputs: Any, num_steps: int, stats: Stats
    ) -> Rollout:
        """Run the recursion under a schedule, None for BPTT's; its cost is added to `stats`."""
        if schedule is None:
            state = run(cell.cell, cell.unflatten_state(cell.state), inputs, range(num_steps))
            stats.cell_evaluations += num_steps
            stats.vjps += num_steps
            return Rollout(state, stats)
        forward = CheckpointedPass(cell, schedule, self.states(cell), self.verify, saving_of(inputs))
        answers = without_graphs(inputs)
        last, kept = forward.run(inputs)
        leaves = joined(CheckpointedRecursion, forward, last, kept, cell.sources, answers)
        differentiated = any(map(requires_grad, leaves))
        stats.cell_evaluations += schedule.evaluations if differentiated else num_steps
        stats.vjps += num_steps * differentiated
        return Rollout(cell.unflatten_state(leaves), stats)


def saving_of(inputs: Any) -> Saving | None:
    """Return which answers of a readout are kept, as an estimator gets the inputs; None where none is asked for."""
    return inputs.answers.saving if asks(inputs) else None
