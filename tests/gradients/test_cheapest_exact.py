"""The cheapest exact way within a budget: which of the three is taken, and that each has BPTT's gradient."""

import re

import pytest
import torch
from torch import nn

from loopgrad.analysis.counters import PeakBytes
from loopgrad.gradients import BPTT, CheapestExact, ReversibleBPTT, Stationary
from loopgrad.models import Damped

STEPS = 256


def cell_of(coupled: bool) -> nn.Module:
    torch.manual_seed(0)
    linear = nn.Linear(24, 24)
    cell = Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear)
    return Damped(cell, "1/8") if coupled else cell


def measured(estimator, coupled):
    cell, x = cell_of(coupled), torch.linspace(-1, 1, 8 * 24).view(8, 24).requires_grad_()
    with PeakBytes() as live:
        rollout = estimator(cell, torch.zeros(8, 24), x, STEPS)
        rollout.state.square().sum().backward()
    return live.peak, rollout.stats, [x.grad, *(p.grad for p in cell.parameters())]


def least(coupled):
    with pytest.raises(ValueError, match="CheapestExact.memory_budget=100. is too small") as error:
        measured(CheapestExact(100), coupled)
    return re.search(r'memory_budget="(\d+)KiB"', str(error.value))


@pytest.mark.parametrize(
    ("coupled", "share", "evaluations"),
    [
        (False, 1.5, STEPS + 1),
        (False, 0.5, 2 * STEPS + 1),
        (True, 100, STEPS + 1),
    ],
)
def test_the_way_of_fewest_evaluations_that_fits_is_taken(coupled, share, evaluations):
    whole, _, exact = measured(BPTT(), coupled)
    peak, stats, found = measured(CheapestExact(int(share * whole)), coupled)
    assert (stats.cell_evaluations, stats.vjps) == (evaluations, STEPS + 1)
    assert peak <= share * whole
    assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))


@pytest.mark.slow
def test_the_least_budget_takes_many_evaluations_and_where_updates_can_be_undone_two_of_each():
    for coupled in (False, True):
        budget = f"{least(coupled)[1]}KiB"
        _, stats, found = measured(CheapestExact(budget), coupled)
        reference = measured(ReversibleBPTT() if coupled else BPTT(), coupled)[2]
        assert all(torch.equal(a, b) for a, b in zip(found, reference, strict=True))
        assert stats.cell_evaluations == 2 * STEPS + 1 if coupled else stats.cell_evaluations > 3 * STEPS


@pytest.mark.parametrize("budget", ["8 gigs", 0, -1, None, "", 1.5])
def test_what_is_no_budget_is_refused_by_name(budget):
    with pytest.raises(ValueError, match=re.escape(f"CheapestExact(memory_budget={budget!r}) must be a positive")):
        CheapestExact(budget)


def test_without_autograd_the_recursion_is_run_and_nothing_else():
    with torch.no_grad():
        rollout = CheapestExact(1)(cell_of(False), torch.zeros(2, 24), torch.ones(2, 24), STEPS)
    assert (rollout.stats.cell_evaluations, rollout.stats.vjps) == (STEPS, 0)
