"""Estimators that are told where the batch is: a copy of the cell with the batch first is the reference."""

from dataclasses import dataclass

import pytest
import torch
from batch_cases import CASES, B, build, swapped
from problems import leaves_of, loss_of

from loopgrad.gradients import (
    BPTT,
    BatchDims,
    CheckpointedBPTT,
    ForwardGradient,
    ForwardMode,
    ImplicitGradient,
    PhantomGradient,
    RandomTruncation,
    ReversibleBPTT,
    Stationary,
    TruncatedBPTT,
    jacobian_penalty,
)
from loopgrad.gradients.batch_first import batch_first
from loopgrad.gradients.solvers import Anderson
from loopgrad.models import Damped, Leapfrog
from loopgrad.models.coupling_base import Coupled

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


COUPLED = ("truncated", "implicit, gated", "state noise", "reversible")


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("couple", [Damped, Leapfrog])
def test_of_a_coupled_cell_both_copies_are_moved(couple, name):
    built = build("heads")
    estimator = ReversibleBPTT() if name == "reversible" else None
    coupled, copy = couple(built.cell, arithmetic="float64"), couple(built.copy, arithmetic="float64")
    found = (estimator or ESTIMATORS[name]())(coupled, built.state, None, 4, batch_dim=1).state
    wanted = (estimator or ESTIMATORS[name]())(copy, swapped(built.state), None, 4).state
    assert torch.equal(found, swapped(wanted))
    parameters = list(built.cell.parameters())
    pairs = zip(*(torch.autograd.grad(loss_of(last), parameters) for last in (found, wanted)), strict=True)
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


def test_a_coupled_state_that_is_given_says_where_the_batch_is_in_all_of_its_leaves():
    built = build("stack")
    cell = Damped(built.cell, arithmetic="float64")
    dims = Coupled((1, 0), (1, 0))
    last = TruncatedBPTT(1)(cell, cell.couple(built.state), built.inputs, 4, batch_dim=dims).state
    plain = TruncatedBPTT(1)(cell, built.state, built.inputs, 4, batch_dim=(1, 0)).state
    assert torch.equal(last.current[0], plain[0]) and last.current[1].shape == (B, 2)


def test_a_coupling_that_makes_no_copies_of_the_state_is_refused_by_name():
    class Packed(Damped):
        def couple(self, state):
            return super().couple(state if isinstance(state, Coupled) else state.flatten(1))

    with pytest.raises(ValueError, match=r"Packed.couple makes of it is not made of copies: pass cell.couple\(state\)"):
        TruncatedBPTT(1)(Packed(build("heads").cell), torch.zeros(B, B, 2), None, 4, batch_dim=1)


LEAF = torch.zeros(2, 3, 4)
REFUSED = {
    "beyond the leaf": (LEAF, 3, ValueError, r"takes dimension 3 of state for the batch, and its shape is \(2, 3, 4\)"),
    "before the leaf": (LEAF, -4, ValueError, r"takes dimension -4 of state for the batch"),
    "one leaf too short": ((LEAF, torch.zeros(3)), 1, ValueError, r"takes dimension 1 of state\[1\]"),
    "a number that floats": ((LEAF, torch.zeros(())), 1, ValueError, r"takes dimension 1 of state\[1\]"),
    "different sizes": ((LEAF, LEAF), (0, 1), ValueError, r"different sizes: \{'state\[0\]': 2, 'state\[1\]': 3\}"),
    "too few": ((LEAF, LEAF), (1,), ValueError, r"does not fit state, whose leaves are \['state\[0\]', 'state\[1\]'\]"),
    "too many": ((LEAF,), (1, 1), ValueError, r"does not fit state"),
    "too deep": (LEAF, (1,), ValueError, r"does not fit state"),
    "another name": ({"h": LEAF}, {"z": 1}, ValueError, r"does not fit state, whose leaves are \[\"state\['h'\]\"\]"),
    "a float": (LEAF, 1.0, TypeError, "must hold ints"),
    "a bool": (LEAF, True, TypeError, "must hold ints"),
    "a word": ((LEAF, LEAF), (1, "first"), TypeError, "must hold ints"),
    "no batch": ((LEAF, LEAF), (1, None), ValueError, r"says that state\[1\] has no batch, and samples that share"),
    "inputs too short": (LEAF, BatchDims(1, inputs=1), ValueError, r"takes dimension 1 of inputs\['x'\]"),
    "inputs of another size": (
        LEAF,
        BatchDims(1, {"x": 0}),
        ValueError,
        r"it has size 5, and the batch of the state 3",
    ),
    "inputs of another structure": (LEAF, BatchDims(1, {"y": 0}), ValueError, "does not fit inputs"),
}


@pytest.mark.parametrize("estimator", [BPTT(), ForwardGradient()])
@pytest.mark.parametrize("name", REFUSED)
def test_a_batch_dim_that_does_not_fit_is_refused_whether_it_is_needed_or_not(name, estimator):
    state, batch_dim, error, said = REFUSED[name]
    cell = Stationary(lambda z, x: z)
    with pytest.raises(error, match=said):
        estimator(cell, state, {"x": torch.zeros(5)}, 2, batch_dim=batch_dim)
    with pytest.raises(error, match=said):
        jacobian_penalty(cell, state, {"x": torch.zeros(5)}, 2, batch_dim=batch_dim)


@dataclass
class Carry:
    z: torch.Tensor
    parts: list


@pytest.mark.parametrize("dims", [Carry(z=1, parts=0), {"z": -2, "parts": [0]}], ids=["dataclass", "names"])
def test_dims_may_be_the_beginning_of_the_state_s_structure(dims):
    cell = Stationary(lambda s, x: Carry(s.z + s.parts[0], [s.parts[0] / 2]))
    found = TruncatedBPTT(1)(cell, Carry(torch.zeros(2, 3, 4), [torch.ones(3, 4)]), None, 2, batch_dim=dims)
    assert torch.equal(found.state.z, torch.full((2, 3, 4), 1.5)) and found.state.parts[0].shape == (3, 4)


def test_the_default_hands_on_the_very_objects():
    cell, state, inputs = Stationary(lambda z, x: z), (LEAF, [LEAF]), {"x": LEAF}
    assert all(a is b for a, b in zip(batch_first(cell, state, inputs, 0), (cell, state, inputs), strict=True))


def test_the_state_comes_back_as_the_cell_lays_it_out():
    cell = Stationary(lambda z, x: (z + 1).contiguous())
    for steps in (0, 1, 3):
        last = TruncatedBPTT(1)(cell, torch.zeros(2, 3, 4), None, steps, batch_dim=1).state
        assert last.stride() == (12, 4, 1) and bool((last == steps).all())


def test_a_cell_that_returns_a_leaf_without_the_dimension_is_told_so():
    cell = Stationary(lambda z, x: z.mean((0, 2)))
    with pytest.raises(ValueError, match=r"returned a leaf of shape \(3,\), whose batch was dimension 1"):
        TruncatedBPTT(1)(cell, LEAF, None, 1, batch_dim=1)


def test_the_penalty_is_that_of_the_jacobian_s_norm_wherever_the_batch_is():
    """The leaves have no first dimension in common."""
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()
    cell = Stationary(lambda s, x: (s[0] @ matrix, 0.5 * s[1]))
    state, probes = (torch.zeros(2, 3, 4).double(), torch.zeros(3, 2).double()), torch.Generator().manual_seed(0)
    found = jacobian_penalty(cell, state, None, 1, probes, num_probes=4000, batch_dim=(1, 0))
    expected = (2 * matrix.square().sum() + 2 * 0.25) / 10
    assert found.item() == pytest.approx(expected.item(), rel=0.05)
