"""Refusals of the contract: each names the argument, the reason and the remedy."""

import dataclasses
from typing import NamedTuple

import pytest
import torch
from cells import Memory
from torch import nn

from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    ForwardGradient,
    ForwardMode,
    ImplicitGradient,
    Stationary,
    Stats,
    TruncatedBPTT,
    tree,
)

ESTIMATORS = [BPTT(), CheckpointedBPTT(), TruncatedBPTT(num_steps=2)]
identity = Stationary(lambda z, x: z)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((lambda z, x, t: z, torch.zeros(1), None, 1), TypeError, r"cell must be an nn.Module.*Stationary"),
        ((identity, torch.zeros(1), None, 2.0), TypeError, "num_steps must be an int"),
        ((identity, torch.zeros(1), None, True), TypeError, "num_steps must be an int"),
        ((identity, torch.zeros(1), None, -1), ValueError, "num_steps must be at least 0"),
        (
            (identity, {"a": [None, torch.zeros(1).long()]}, None, 1),
            TypeError,
            r"no floating tensor.*state\['a'\]\[0\]: NoneType, state\['a'\]\[1\]: torch.int64",
        ),
        ((identity, Memory(True, [3]), None, 1), TypeError, r"no floating tensor.*state.slow\[0\]: int"),
    ],
)
def test_a_wrong_argument_is_named(estimator, arguments, error, message):
    with pytest.raises(error, match=message):
        estimator(*arguments)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_cell_that_changes_the_structure_of_the_state_is_refused(estimator):
    cell = Stationary(lambda z, x: {"other": z["z"] * x})
    with pytest.raises(ValueError, match=r"structure it was given: \[\"state\['z'\]\"\]"):
        estimator(cell, {"z": torch.zeros(1)}, torch.ones(1, requires_grad=True), 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "one of num_steps, num_cycles and scope, got none"),
        ({"num_steps": 1, "num_cycles": 1}, ValueError, "one of num_steps, num_cycles and scope"),
        ({"num_steps": 0}, ValueError, "at least 1"),
        ({"num_cycles": 1.5}, TypeError, "must be an int"),
    ],
)
def test_truncation_needs_one_length(arguments, error, message):
    with pytest.raises(error, match=message):
        TruncatedBPTT(**arguments)


@pytest.mark.parametrize("schedule", [0, -1, True, 2.0, "sqr", None])
def test_a_schedule_that_is_none_is_refused(schedule):
    with pytest.raises(ValueError, match=r"CheckpointedBPTT\(schedule="):
        CheckpointedBPTT(schedule)


def test_estimators_are_frozen_and_compare_by_value():
    assert TruncatedBPTT(num_steps=2) == TruncatedBPTT(num_steps=2) != TruncatedBPTT(num_steps=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        BPTT().kind = "biased"


def test_stats_print_on_one_line_what_they_know():
    w = torch.tensor([0.5], requires_grad=True)
    cell, z, x = Stationary(lambda z, x: w * z + x, parameters=[w]), torch.zeros(3, 1), torch.ones(3, 1)
    x[2] = torch.nan
    assert repr(Stats(8, 8)) == "Stats(cell_evaluations=8, vjps=8)"
    assert repr(ForwardMode()(cell, z, x, 4).stats) == "ForwardStats(cell_evaluations=4, vjps=0, tangents=4)"
    for estimator in (ForwardGradient(2, seed=0), ImplicitGradient(), ImplicitGradient(forward_rtol=1e-12)):
        rollout = estimator(cell, z, x, 20)
        before, plain = repr(rollout.stats), dataclasses.replace(rollout.stats)
        rollout.state.sum().backward()
        after = repr(rollout.stats)
        assert after != before and "\n" not in after and len(after) < 240
        assert rollout.stats.vjps > plain.vjps
    assert before == "ImplicitStats(cell_evaluations=20, vjps=0, verdict=None)"
    assert "verdict=Verdict(trusted=0 of 3, finite=2 of 3, fallback=True, forward_residual=" in after


def test_stationary_names_what_it_cannot_take():
    with pytest.raises(TypeError, match="must be callable"):
        Stationary(3)
    with pytest.raises(TypeError, match="modules or tensors, got str"):
        Stationary(lambda z, x: z, parameters=["w"])


def test_stationary_registers_each_parameter_once():
    linear, gain = nn.Linear(2, 2), nn.Parameter(torch.ones(2))
    cell = Stationary(lambda z, x: linear(z) * gain, parameters=[linear, gain, *linear.parameters()])
    assert {id(p) for p in cell.parameters()} == {id(linear.weight), id(linear.bias), id(gain)}
    assert len(list(Stationary(linear, parameters=linear).parameters())) == 2


class Pair(NamedTuple):
    left: torch.Tensor
    right: object


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    value: torch.Tensor
    note: str = "kept"


def test_a_tree_is_rebuilt_as_it_was():
    nested = {"b": Pair(torch.tensor(1.0), Slotted(torch.tensor(2.0))), "a": [Memory(torch.tensor(3.0), []), None, "x"]}
    leaves, unflatten = tree.flatten(nested)
    rebuilt = unflatten(leaves)
    assert rebuilt["b"] == nested["b"] and isinstance(rebuilt["b"], Pair) and rebuilt["b"].right.note == "kept"
    assert rebuilt["a"][0] == nested["a"][0] and rebuilt["a"][1:] == [None, "x"]
    doubled = tree.map_tensors(lambda tensor: 2 * tensor, nested)
    assert doubled["b"].right.value == 4 and doubled["a"][0].fast == 6
    names = [name for name, leaf in tree.leaves_with_names(nested, "state") if isinstance(leaf, torch.Tensor)]
    assert sorted(names) == ["state['a'][0].fast", "state['b'].left", "state['b'].right.value"]
    assert [leaf for _, leaf in tree.leaves_with_names(nested, "s")] == leaves


@pytest.mark.parametrize("period", [0, -1, "2", 2.0, True, None])
def test_a_period_that_is_none_is_refused_by_name(period):
    cell = Stationary(lambda z, x: z + x)
    cell.period = period
    with pytest.raises(ValueError, match="cell.period="):
        TruncatedBPTT(num_cycles=1)(cell, torch.zeros(2, 3), torch.ones(2, 3), num_steps=4)


class Filling(nn.Module):
    """Fills the container that it was given, and returns it."""

    def forward(self, state, inputs, step):
        if isinstance(state, dict):
            state["h"] = 0.9 * state["h"] + inputs
        elif isinstance(state, list):
            state[0] = 0.9 * state[0] + inputs
        else:
            state.slow[0] = 0.9 * state.slow[0] + inputs
        return state


@pytest.mark.parametrize(
    "make", [lambda z: {"h": z}, lambda z: [z], lambda z: Memory(z, [z + 1])], ids=["dict", "list", "dataclass"]
)
@pytest.mark.parametrize("estimator", [BPTT(), CheckpointedBPTT(), TruncatedBPTT(2), ImplicitGradient()], ids=str)
def test_a_container_that_a_cell_fills_is_not_the_callers(make, estimator):
    state, x = make(torch.zeros(2, 3)), torch.ones(2, 3, requires_grad=True)
    before = tree.tensors(state)
    first, second = (tree.tensors(estimator(Filling(), state, x, 4).state) for _ in range(2))
    assert all(leaf is old for leaf, old in zip(tree.tensors(state), before, strict=True))
    assert all(map(torch.equal, first, second))
