"""Which estimators fit a number of bytes, with what they take, before anything is run."""

import functools
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from loopgrad.analysis.foreseen import BATCH, foreseen_by_batch, reason
from loopgrad.analysis.shorter import Traced, largest, of_length
from loopgrad.analysis.stand_ins import TRIED, Enough, followed, tried, unquestioned
from loopgrad.gradients import BPTT, CheckpointedBPTT, Estimator, ParallelNewton, Stats
from loopgrad.gradients.budget import BudgetTooSmall, Footprint, choose
from loopgrad.gradients.budget import trace as trace_cycle
from loopgrad.gradients.checkpointed import saving_of
from loopgrad.gradients.contract import Rollout
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.online import Online
from loopgrad.gradients.schedule import Schedule


@dataclass(frozen=True)
class Step:
    """A training step around a recursion.

    Attributes:
        make: Makes what `forward` takes, for a batch and a number of updates.
        forward: Called as forward(made, estimator, num_steps); returns the loss and the cost of the rollout.
        num_steps: Updates of the recursion.
        period: Updates in a cycle.
        kept: Bytes that lie beside the step, such as the weights and the moments of an optimiser.
        most: Updates that are traced one by one; what longer recursions take follows from shorter ones. None where
            `forward` takes no other number: all are traced.
        with_data: Makes the same with data, for a few samples; those of what online gradients are tried on.
    """

    make: Callable[[int, int], Any]
    forward: Callable[[Any, Estimator, int], tuple[Tensor, Stats]]
    num_steps: int
    period: int
    kept: int
    most: int | None = None
    with_data: Callable[[int, int], Any] | None = None


@dataclass(frozen=True)
class Planned:
    """What is foreseen of a step under an estimator.

    Attributes:
        name: Of the estimator.
        kind: Of its gradient.
        bytes: At the batch that was asked for, what is kept beside included; None if it cannot be foreseen.
        fits: Whether these are within the budget.
        evaluations: Calls of the cell, at most where data decide.
        vjps: Vector-Jacobian products of single updates, at most where data decide.
        largest_batch: That fits; 0 if none does.
        room: What the budget leaves for the recursion, of an estimator with a budget of its own; None of others.
        remark: Why it cannot be foreseen; "" if it is.
    """

    name: str
    kind: str
    bytes: int | None = None
    fits: bool = False
    evaluations: int = 0
    vjps: int = 0
    largest_batch: int = 0
    room: int | None = None
    remark: str = ""

    @property
    def cost(self) -> int:
        """Evaluations, a vjp counted as two of them."""
        return self.evaluations + 2 * self.vjps


def planned(step: Step, estimators: Mapping[str, Estimator], budget: int, batch_size: int) -> list[Planned]:
    """Return what is foreseen of each estimator: first those that fit, from the cheapest on.

    Of an estimator with a memory budget of its own that is what the budget here leaves for the recursion.
    """
    whole = functools.cache(lambda: _traced(step, BPTT()))
    found, probes = [], {}
    for name, estimator in estimators.items():
        try:
            if isinstance(estimator, Online | ParallelNewton):
                stands = _tried(step, estimator, probes) if isinstance(estimator, Online) else unquestioned(estimator)
                traced = _trace(step, stands, step.num_steps, number=0.0)
                row = _row(name, estimator, traced, step, budget, batch_size, stands.beside)
                if batch_size == 1 and isinstance(estimator, ParallelNewton):  # then it copies nothing for a layout
                    own = step.kept + _trace(step, stands, step.num_steps, number=0.0, batch=1).at(1)
                    most = max(row.largest_batch, int(own <= budget))
                    row = replace(row, bytes=own, fits=own <= budget, largest_batch=most)
            elif getattr(estimator, "memory_budget", None) is not None:
                row = _within(name, estimator, step, whole(), budget, batch_size)
            else:
                traced = whole() if estimator == BPTT() else _traced(step, estimator)
                row = _row(name, estimator, traced, step, budget, batch_size)
        except (ValueError, TypeError, RuntimeError, LookupError) as error:
            row = Planned(name, estimator.kind, remark=reason(error))
        found.append(row)
    return sorted(found, key=lambda row: (bool(row.remark), not row.fits, row.cost, row.bytes))


def cheapest_exact(rows: list[Planned]) -> Planned | None:
    """Return the cheapest of those that are exact and fit; None if none is."""
    return next((row for row in rows if row.fits and row.kind == "exact"), None)


def _traced(step: Step, estimator: Estimator) -> Traced:
    plain = unquestioned(estimator)
    if step.most is None:
        return _trace(step, plain, step.num_steps)
    return of_length(lambda how, length: _trace(step, how, length), plain, step.num_steps, step.period, step.most)


def _tried(step: Step, estimator: Online, probes: dict[Any, Any]) -> Any:
    """Return what stands for an online estimator, once its first updates have been run with data."""
    if step.with_data is None:
        raise ValueError(f"{type(estimator).__name__} is tried on data first, and there are none here")
    trial = tried(estimator, probes)
    with torch.random.fork_rng(devices=[]), suppress(Enough):
        torch.manual_seed(0)
        step.forward(step.with_data(TRIED, step.num_steps), trial, step.num_steps)
    return followed(estimator, trial)


def _trace(
    step: Step, estimator: Estimator, num_steps: int, number: float = math.inf, batch: int | None = None
) -> Traced:
    """Return what is followed of a step, for any batch, or for one alone."""

    def run(made: Any) -> Stats:
        loss, stats = step.forward(made, estimator, num_steps)
        if not loss.requires_grad:
            raise ValueError("neither the weights that are read nor the inputs require grad: no gradient is taken")
        loss.backward()
        return stats

    growing, stats = foreseen_by_batch(lambda any_batch: step.make(batch or any_batch, num_steps), run, number)
    return Traced(((1.0, growing),), stats.cell_evaluations, stats.vjps)


def _row(
    name: str,
    estimator: Estimator,
    traced: Traced,
    step: Step,
    budget: int,
    batch_size: int,
    beside: Callable[[int], tuple[int, int]] = lambda batch: (0, 0),
) -> Planned:
    """Return the row of what was traced.

    `beside` gives the evaluations and vjps that a batch takes beside, or raises ValueError where it is refused.
    """
    evaluations, vjps = beside(batch_size)
    evaluations, vjps = evaluations + traced.evaluations, vjps + traced.vjps
    taken = step.kept + traced.at(batch_size)

    def fits(batch: int) -> bool:
        try:
            beside(batch)
        except ValueError:
            return False
        return step.kept + traced.at(batch) <= budget

    return Planned(name, estimator.kind, taken, taken <= budget, evaluations, vjps, largest(fits))


class _Met(Exception):
    """Carries what was asked for out of a step that need not go on."""


@dataclass(frozen=True)
class _Footprint(Estimator):
    """Traces a cycle, and ends the step with what it takes."""

    how: CheckpointedBPTT

    kind = "exact"
    memory = "O(T)"
    outputs = "emitted"
    by_sample = False

    def rollout(self, cell: torch.nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        functional = FunctionalCell(cell, state, inputs)
        raise _Met(trace_cycle(functional, num_steps, self.how.states(functional), Stats(0, 0), saving_of(inputs)))


@dataclass(frozen=True)
class _Scheduled(Estimator):
    """Checkpoints under a schedule that a budget has led to."""

    schedule: Schedule
    how: CheckpointedBPTT

    kind = "exact"
    memory = "O(sqrt T)"
    outputs = "emitted"
    by_sample = False

    def rollout(self, cell: torch.nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        functional = FunctionalCell(cell, state, inputs)
        return self.how.scheduled(self.schedule, functional, inputs, num_steps, Stats(0, 0))


def _footprint(step: Step, how: CheckpointedBPTT) -> Callable[[int], Footprint]:
    def of(scale: int) -> Footprint:
        def run(made: Any) -> Footprint:
            try:
                step.forward(made, _Footprint(how), step.num_steps)
            except _Met as met:
                return met.args[0]
            raise AssertionError("the step calls no estimator")

        return foreseen_by_batch(lambda batch: step.make(scale * batch, step.num_steps), run)[1]

    one, two = of(1), of(2)

    def at(batch: int) -> Footprint:
        numbers = {}
        for name in (field.name for field in fields(Footprint)):
            low, high = getattr(one, name), getattr(two, name)
            numbers[name] = low + (high - low) * (batch - BATCH) // BATCH
        return Footprint(**numbers)

    return at


def _within(name: str, estimator: Any, step: Step, whole: Traced, budget: int, batch_size: int) -> Planned:
    how = estimator if isinstance(estimator, CheckpointedBPTT) else CheckpointedBPTT()
    footprint, num_steps = _footprint(step, how), step.num_steps

    def left(batch: int) -> int:
        """Return what is left for the recursion."""
        return budget - step.kept - max(0, whole.at(batch) - footprint(batch).whole(num_steps))

    def least(batch: int) -> int:
        return min(footprint(batch).whole(num_steps), footprint(batch).cut(0, 1))

    most = largest(lambda batch: least(batch) <= left(batch))
    own, room = footprint(batch_size), left(batch_size)
    around = budget - room
    try:
        schedule = choose(own, num_steps, room)
    except BudgetTooSmall:
        return Planned(name, estimator.kind, around + least(batch_size), False, 0, 0, most, room)
    if schedule is None:
        taken, evaluations = step.kept + whole.at(batch_size), num_steps
    elif step.most is None or num_steps <= step.most:
        taken, evaluations = (
            step.kept + _trace(step, _Scheduled(schedule, how), num_steps).at(batch_size),
            schedule.evaluations,
        )
    else:
        length = schedule.bounds[-1] - schedule.bounds[-2]
        taken, evaluations = around + own.cut(schedule.snapshots, length), schedule.evaluations
    evaluations, vjps = evaluations + own.traced, num_steps + own.traced
    return Planned(name, estimator.kind, taken, taken <= budget, evaluations, vjps, most, room)
