"""Every estimator beside what its gradient must be on any cell: BPTT's, or a relation written out by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import OfTheFirstUpdate
from foreign_cells import Foreign
from problems import Problem, detached, leaves_of, loop
from torch import Tensor, nn

from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    CompressedBPTT,
    Estimator,
    ImplicitGradient,
    PhantomGradient,
    RandomTruncation,
    ReversibleBPTT,
    TruncatedBPTT,
)
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.solvers import LinearSolution
from loopgrad.models import Coupling, Damped, Leapfrog

Reference = Callable[[Foreign, Problem], Tensor]


def exact(foreign: Foreign, problem: Problem) -> Tensor:
    """The loss whose gradient is BPTT's, by the loop as its author writes it."""
    cell = problem.cell
    if isinstance(cell, Coupling):
        return foreign.loss(
            cell.read(loop(Problem(cell, cell.couple(problem.state), problem.inputs), foreign.num_steps))
        )
    return foreign.loss(loop(problem, foreign.num_steps))


def cut_before(updates: int) -> Reference:
    return lambda foreign, problem: foreign.loss(loop(problem, foreign.num_steps, updates))


def cut_before_last_cycle(foreign: Foreign, problem: Problem) -> Tensor:
    return foreign.loss(loop(problem, foreign.num_steps, period_of(problem.cell)))


def continued(cycles: int) -> Reference:
    """The cotangent of z_T, pulled back through cycles that go on from z_T as a constant."""

    def loss(foreign: Foreign, problem: Problem) -> Tensor:
        last = detached(loop(problem, foreign.num_steps))
        b, ahead = _cotangent(foreign, last), detached(last)
        for _ in range(cycles):
            ahead = _last_cycle(foreign, problem, ahead)
        return _product(ahead, b) + foreign.loss(last)

    return loss


def two_terms(foreign: Foreign, problem: Problem) -> Tensor:
    """(df/dtheta)^T (b + J^T b), with the last cycle f linearised at z_T under the random numbers it was run with."""
    period = period_of(problem.cell)
    before = loop(problem, foreign.num_steps - period)
    drawn = torch.get_rng_state()
    last = detached(_last_cycle(foreign, problem, before))
    b, own, leaves = _cotangent(foreign, last), foreign.loss(detached(last)), _floating(last)
    for leaf in leaves:
        leaf.requires_grad_()
    after = torch.get_rng_state()
    torch.set_rng_state(drawn)
    image = _last_cycle(foreign, problem, last)
    torch.set_rng_state(after)
    turned = torch.autograd.grad(_product(image, b), leaves, retain_graph=True, allow_unused=True)
    terms = [one if two is None else one + two for one, two in zip(b, turned, strict=True)]
    return _product(image, terms) + own


def first_two_terms(
    pull: Callable[[Tensor], Tensor], b: Tensor, tolerance: Tensor, max_vjps: int, check_every: int | None
) -> LinearSolution:
    """A linear solver that stops at b + J^T b."""
    return LinearSolution(b + pull(b), b.norm(dim=1), 1)


def _last_cycle(foreign: Foreign, problem: Problem, state: Any) -> Any:
    for step in range(foreign.num_steps - period_of(problem.cell), foreign.num_steps):
        state = problem.cell(state, problem.inputs, step)
    return state


def _floating(state: Any) -> list[Tensor]:
    return [leaf for leaf in leaves_of(state) if leaf.is_floating_point()]


def _cotangent(foreign: Foreign, last: Any) -> list[Tensor]:
    leaves = [leaf.requires_grad_() for leaf in _floating(last)]
    found = torch.autograd.grad(foreign.loss(last), leaves, allow_unused=True)
    for leaf in leaves:
        leaf.requires_grad_(False)
    return [torch.zeros_like(leaf) if b is None else b for leaf, b in zip(leaves, found, strict=True)]


def _product(state: Any, b: list[Tensor]) -> Tensor:
    return sum((leaf * part).sum() for leaf, part in zip(_floating(state), b, strict=True))  # pyright: ignore


@dataclass(frozen=True)
class Case:
    """An estimator, the loss whose gradient it must give, and the coupling that makes a cell what it can run."""

    estimator: Estimator
    reference: Reference = exact
    couple: Callable[[nn.Module], nn.Module] | None = None

    def begin(self, foreign: Foreign) -> Problem:
        problem = foreign.begin()
        return problem if self.couple is None else Problem(self.couple(problem.cell), problem.state, problem.inputs)


CASES: dict[str, Case] = {
    "bptt": Case(BPTT()),
    "checkpointed_sqrt": Case(CheckpointedBPTT()),
    "checkpointed_1": Case(CheckpointedBPTT(1)),
    "checkpointed_4": Case(CheckpointedBPTT(4)),
    "checkpointed_binomial_1": Case(CheckpointedBPTT("binomial", num_snapshots=1)),
    "checkpointed_budget": Case(CheckpointedBPTT(memory_budget="1MiB")),
    "compressed_whole": Case(CompressedBPTT(rank=10_000)),
    "truncated_whole": Case(TruncatedBPTT(num_steps=99)),
    "implicit_whole": Case(ImplicitGradient(forward_rtol=0, max_gradient_error=0, fallback=CheckpointedBPTT())),
    # so long a mean that every draw takes all updates, with weights of one
    "random_whole": Case(RandomTruncation(mean_steps=1e14, seed=0)),
    "forward_first_update": Case(OfTheFirstUpdate(2, scope="batch", seed=0)),
    "forward_first_central": Case(OfTheFirstUpdate(2, mode="central", scope="batch", seed=0)),
    "reversible_damped": Case(ReversibleBPTT(), couple=lambda cell: Damped(cell, "1/8", per="update")),
    "reversible_leapfrog": Case(ReversibleBPTT(), couple=lambda cell: Leapfrog(cell, 0.1)),
    "truncated_2": Case(TruncatedBPTT(num_steps=2), cut_before(2)),
    "truncated_last_cycle": Case(TruncatedBPTT(num_cycles=1), cut_before_last_cycle),
    "implicit_last_cycle": Case(
        ImplicitGradient(forward_rtol=0, max_gradient_error=0, fallback=TruncatedBPTT(num_cycles=1)),
        cut_before_last_cycle,
    ),
    "phantom_2": Case(PhantomGradient(num_steps=2), continued(2)),
    "implicit_two_terms": Case(
        ImplicitGradient(first_two_terms, "batch", check_every=None, on_unconverged="ignore"), two_terms
    ),
}

# (case, model) -> a part of the message with which it is refused; each says what is true of that cell
REFUSED: dict[tuple[str, str], str] = {
    ("reversible_damped", "spiking"): "rewrites its buffer cell.net.norm.num_batches_tracked",
    ("reversible_leapfrog", "spiking"): "rewrites its buffer cell.net.norm.num_batches_tracked",
}


def refused(name: str, model: str) -> Any:
    return pytest.raises((TypeError, ValueError, RuntimeError), match=REFUSED[name, model])


def rollout(case: Case, foreign: Foreign, problem: Problem) -> Tensor:
    state = case.estimator(problem.cell, problem.state, problem.inputs, foreign.num_steps).state
    return foreign.loss(state)
