"""Estimators that are told where the batch is: a copy of the cell with the batch first is the reference."""

import pytest
import torch
from batch_cases import CASES, build
from problems import leaves_of, loss_of

from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    ForwardGradient,
    ForwardMode,
    ImplicitGradient,
    PhantomGradient,
    RandomTruncation,
    TruncatedBPTT,
)
from loopgrad.gradients.solvers import Anderson

ESTIMATORS = {
    "bptt": lambda: BPTT(),
    "checkpointed": lambda: CheckpointedBPTT(3),
    "truncated": lambda: TruncatedBPTT(num_steps=2),
    "phantom": lambda: PhantomGradient(2, damping=0.5),
    "implicit": lambda: ImplicitGradient(forward_rtol=10, max_gradient_error=10),
    "implicit, gated": lambda: ImplicitGradient(forward_rtol=0.05, max_gradient_error=0.1),
    "implicit, solved forward": lambda: ImplicitGradient(forward=Anderson(), forward_rtol=1e-6),
    "random": lambda: RandomTruncation(mean_steps=2, seed=1),
    "state noise": lambda: ForwardGradient(4, seed=0),
    "state noise, central": lambda: ForwardGradient(2, seed=0, mode="central"),
    "weight noise": lambda: ForwardGradient(4, perturb="weights", seed=0, window=1),
    "forward mode": lambda: ForwardMode(),
}


def gradients(case, estimator, moved, num_steps=6):
    """The last state and the gradients of parameters, state and inputs, all laid out as the cell has them."""
    state, inputs = case.state, case.inputs
    if moved:
        last = (rollout := estimator(case.copy, case.move(state), case.move_inputs(inputs), num_steps)).state
        last = case.move(last)
    else:
        last = (rollout := estimator(case.cell, state, inputs, num_steps, batch_dim=case.batch_dim)).state
    sources = [*case.cell.parameters(), *(leaf for leaf in leaves_of((state, inputs)) if leaf.requires_grad)]
    return last, torch.autograd.grad(loss_of(last), sources, allow_unused=True), rollout.stats


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("case", CASES)
def test_it_is_what_a_copy_of_the_cell_with_the_batch_first_gives(case, name):
    built = build(case)
    last, found, stats = gradients(built, ESTIMATORS[name](), moved=False)
    reference, expected, cost = gradients(built, ESTIMATORS[name](), moved=True)
    assert stats == cost
    for got, wanted in zip(leaves_of(last), leaves_of(reference), strict=True):
        assert got.shape == wanted.shape and torch.equal(got, wanted)
    for got, wanted in zip(found, expected, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-14)  # sums of one number in another order
