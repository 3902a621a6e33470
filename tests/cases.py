"""The estimators the conformance suite runs over: a new one is a row of ESTIMATORS. The cells are in cells.py."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from textwrap import dedent
from typing import Any

from cells import build
from problems import Problem, detached, leaves_of
from repository import ROOT, blocks
from torch import nn

from loopgrad.gradients import (
    BPTT,
    RTRL,
    CheapestExact,
    CheckpointedBPTT,
    CompressedBPTT,
    Estimator,
    ForwardGradient,
    ImplicitGradient,
    ParallelNewton,
    ReversibleBPTT,
    SnAp,
    TruncatedBPTT,
)
from loopgrad.gradients.contract import period_of
from loopgrad.models import Coupling, Damped, Leapfrog


@dataclass(frozen=True)
class EstimatorCase:
    name: str
    estimator: Estimator
    # number of last updates whose derivative the estimate must equal; None for all of them
    differentiated: Callable[[nn.Module], int] | None = None
    # an estimator for invertible cells runs on the cells of the list once they are coupled
    couple: Callable[[nn.Module], Coupling] | None = None
    refused: tuple[str, ...] = ()
    # how many cycles more are evaluated and differentiated, to foresee the others
    traces: int = 0
    # whether updates are differentiated backward, and not forward
    backward: bool = True
    # whether updates are run as further samples: the last state is the loop's to rounding, and a call is of them all
    side_by_side: bool = False

    def build(self, name: str) -> "Problem":
        problem = build(name)
        if self.couple is None:
            return problem
        coupled = self.couple(problem.cell)
        start = coupled.couple(detached(problem.state))
        for leaf in leaves_of((start.current, start.other)):
            leaf.requires_grad_()
        return Problem(coupled, start, problem.inputs)


@dataclass(frozen=True)
class OfTheFirstUpdate(ForwardGradient):
    """All updates but the first in the window: the one adjoint that is left is known, and the estimate is exact."""

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Any:
        return ForwardGradient.rollout(replace(self, window=max(0, num_steps - 1)), cell, state, inputs, num_steps)


@dataclass(frozen=True)
class OfLeastBudget(CheapestExact):
    """Always under the least budget that checkpoints fit, whatever the cell."""

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Any:
        try:
            return CheapestExact(1).rollout(cell, state, inputs, num_steps)
        except ValueError as error:
            found = re.search(r'memory_budget="(\d+KiB)"', str(error))
            assert found is not None
            rollout = CheapestExact(found[1]).rollout(cell, state, inputs, num_steps)
            if rollout.stats.vjps:  # it has traced a cycle once before
                rollout.stats.cell_evaluations += min(period_of(cell), num_steps)
                rollout.stats.vjps += min(period_of(cell), num_steps)
            return rollout


def of_the_guide() -> Estimator:
    """The estimator that the guide for contributors writes, held to what it says of estimators."""
    ((_, code),) = blocks((ROOT / "CONTRIBUTING.md").read_text(), "python")
    names: dict[str, Any] = {}
    exec(dedent(code), names)
    return names["LastTwoUpdates"]()


# attention takes another kernel, which rounds otherwise; updates that write buffers have no forward-mode rules
FORWARD = ("attention", "slots", "buffers", "normalised")
# no update before the other: what has an order, or is picked by step, cannot be
IN_ORDER = ("buffers", "dropout", "normalised", "recurrent", "twice", "nested")

ESTIMATORS = [
    EstimatorCase("bptt", BPTT()),
    EstimatorCase("checkpointed_sqrt", CheckpointedBPTT()),
    EstimatorCase("checkpointed_1", CheckpointedBPTT(schedule=1)),
    EstimatorCase("checkpointed_3", CheckpointedBPTT(schedule=3)),
    EstimatorCase("checkpointed_1000", CheckpointedBPTT(schedule=1000)),
    EstimatorCase("checkpointed_binomial_0", CheckpointedBPTT("binomial", num_snapshots=0)),
    EstimatorCase("checkpointed_binomial_1", CheckpointedBPTT("binomial", num_snapshots=1)),
    EstimatorCase("checkpointed_binomial_3", CheckpointedBPTT("binomial", num_snapshots=3)),
    # one segment, which begins at z_0
    EstimatorCase("checkpointed_short", CheckpointedBPTT(schedule=1000, kept="int8")),
    EstimatorCase("compressed_at_full_rank", CompressedBPTT(rank=10_000)),
    EstimatorCase("cheapest_exact_whole", CheapestExact("1GiB"), traces=1),
    EstimatorCase("cheapest_exact_checkpointed", OfLeastBudget("1GiB"), traces=2),
    EstimatorCase("truncated_one_step", TruncatedBPTT(num_steps=2), lambda cell: 2),
    EstimatorCase("truncated_last_cycle", TruncatedBPTT(num_cycles=1), period_of),
    EstimatorCase("truncated_two_cycles", TruncatedBPTT(num_cycles=2), lambda cell: 2 * period_of(cell)),
    EstimatorCase("of_the_guide", of_the_guide(), lambda cell: 2),
    EstimatorCase("truncated_whole", TruncatedBPTT(num_steps=10_000)),
    # no sample passes this gate, so that the fallback's gradient is all of it
    EstimatorCase(
        "implicit_falls_back_to_last_cycle",
        ImplicitGradient(forward_rtol=0, max_gradient_error=0, fallback=TruncatedBPTT(num_cycles=1)),
        period_of,
    ),
    EstimatorCase(
        "implicit_falls_back_to_checkpointed",
        ImplicitGradient(forward_rtol=0, max_gradient_error=0, fallback=CheckpointedBPTT()),
        # what a plain function closes over is swapped once, not a second time inside
        refused=("closure", "closure_over_parameters", "no_inputs"),
    ),
    # attention takes another kernel, which rounds otherwise: tested in test_forward_gradient_cells.py
    EstimatorCase("forward_first_update", OfTheFirstUpdate(2, seed=0), refused=("attention", "slots")),
    EstimatorCase("forward_first_update_central", OfTheFirstUpdate(2, mode="central", seed=0)),
    EstimatorCase("rtrl", RTRL(), refused=FORWARD, backward=False),
    # what is reached in so many steps is all; a mask needs zeros that are the same at every update
    EstimatorCase("snap_whole", SnAp(10_000), refused=(*FORWARD, "recurrent", "twice"), backward=False),
    EstimatorCase("parallel_newton", ParallelNewton(), refused=IN_ORDER, side_by_side=True),
    # damped steps do not arrive within a hundred where the map expands
    EstimatorCase(
        "parallel_newton_damped",
        ParallelNewton(damping=0.1, tolerance=5e-15),
        refused=(*IN_ORDER, "no_inputs", "slots"),
        side_by_side=True,
    ),
    EstimatorCase(
        "parallel_newton_diagonal",
        ParallelNewton("diagonal", tolerance=3e-15, max_iterations=300),
        refused=IN_ORDER,
        side_by_side=True,
    ),
    EstimatorCase(
        "cheapest_exact_damped",
        CheapestExact("1GiB"),
        couple=lambda cell: Damped(cell, "1/8", arithmetic="float64", per="update"),
        traces=1,
    ),
    # in float64: what is exact on a grid has no finite differences
    EstimatorCase(
        "reversible_damped",
        ReversibleBPTT(),
        couple=lambda cell: Damped(cell, "1/8", arithmetic="float64", per="update"),
        refused=("buffers", "normalised"),
    ),
    EstimatorCase(
        "reversible_leapfrog",
        ReversibleBPTT(),
        couple=lambda cell: Leapfrog(cell, 0.1, arithmetic="float64"),
        refused=("buffers", "normalised"),
    ),
]
