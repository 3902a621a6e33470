"""Couplings around cells as others write them: what a cell may do to the state it is given, and what is refused."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from problems import leaves_of
from torch import nn
from undoing import gradients_by_bptt, gradients_by_hand, same_state

from loopgrad.gradients import BPTT, ReversibleBPTT, Stationary
from loopgrad.gradients.contract import closed_over
from loopgrad.models import Damped, Leapfrog, Momentum

COUPLINGS = {
    "damped": lambda cell, **more: Damped(cell, "1/4", **more),
    "leapfrog": lambda cell, **more: Leapfrog(cell, 1 / 16, **more),
    "momentum": lambda cell, **more: Momentum(cell, "7/8", **more),
}
every_coupling = pytest.mark.parametrize("coupling", COUPLINGS)


class Pair(NamedTuple):
    a: Any
    b: Any


@dataclass
class Both:
    a: Any
    b: Any


def maps():
    torch.manual_seed(0)
    linear, z = nn.Linear(4, 4), [torch.randn(3, 4).requires_grad_() for _ in range(2)]
    return linear, z, lambda a, b: (torch.tanh(linear(a) + b), torch.sin(a - b))


def agree(coupled, state, num_steps=7):
    """Whether undoing by hand, and `ReversibleBPTT`, agree with one graph of all updates to the bit."""

    def loss(state):
        return sum((i + 1) * leaf.sin().sum() for i, leaf in enumerate(leaves_of(state)))

    parameters = [*coupled.parameters(), *closed_over(coupled)]
    found = [by(coupled, state, None, num_steps, loss, parameters) for by in (gradients_by_bptt, gradients_by_hand)]
    last = ReversibleBPTT()(coupled, state, None, num_steps).state
    found.append((last, list(torch.autograd.grad(loss(last), [*leaves_of(state), *parameters], allow_unused=True))))
    return all(same_state(found[0], other) for other in found[1:])


@every_coupling
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_dict_that_comes_back_in_another_order_is_read_by_its_keys(coupling, kind):
    linear, (a, b), f = maps()

    def turned(state, inputs):
        new_a, new_b = f(state["a"], state["b"])
        return kind([("b", new_b), ("a", new_a)])

    def straight(state, inputs):
        return kind(zip("ab", f(state["a"], state["b"]), strict=True))

    start = kind(a=a, b=b)
    one, other = (
        BPTT()(COUPLINGS[coupling](Stationary(g, parameters=linear)), start, None, 5).state for g in (turned, straight)
    )
    assert torch.equal(one["a"], other["a"]) and torch.equal(one["b"], other["b"])
    assert agree(COUPLINGS[coupling](Stationary(turned, parameters=linear)), start)


@every_coupling
@pytest.mark.parametrize("given", [list, tuple])
def test_a_list_may_come_back_as_a_tuple_and_the_other_way_round(coupling, given):
    linear, z, f = maps()
    back = tuple if given is list else list
    cell = Stationary(lambda s, x: back(f(*s)), parameters=linear)
    assert agree(COUPLINGS[coupling](cell), given(z))


@every_coupling
@pytest.mark.parametrize("kind", [Pair, Both])
def test_named_tuples_and_dataclasses_are_read_by_their_fields(coupling, kind):
    linear, z, f = maps()
    cell = Stationary(lambda s, x: kind(*f(s.a, s.b)), parameters=linear)
    assert agree(COUPLINGS[coupling](cell), kind(*z))


@every_coupling
@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (lambda a, b: {"a": a, "c": b}, r"\['c'\]"),
        (lambda a, b: {"a": a}, r"returned \[\"state\['a'\]\"\]$"),
        (lambda a, b: {"a": a, "b": b, "c": a}, r"\['c'\]"),
        (lambda a, b: (a, b), r"state\[0\]"),
        (lambda a, b: {"a": a, "b": [b]}, r"\['b'\]\[0\]"),
    ],
)
def test_another_structure_is_refused(coupling, returned, got):
    cell = Stationary(lambda s, x: returned(s["a"] * 2, s["b"] * 2))
    with pytest.raises(ValueError, match=f"structure it was given.*{got}"):
        COUPLINGS[coupling](cell)({"a": torch.ones(2), "b": torch.ones(2)}, None, 0)


@every_coupling
@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (lambda a: torch.cat([a, a]), r"shape \(4, 3\) and torch.float32 for state\[0\].*own shape \(2, 3\)"),
        (lambda a: a.sum(0), r"shape \(3,\)"),
        (lambda a: a[:1], r"shape \(1, 3\)"),
        (lambda a: a.argmax(), "torch.int64"),
        (lambda a: a > 0, "torch.bool"),
        (lambda a: a.to(torch.complex64), "torch.complex64"),
        (lambda a: None, "a NoneType for"),
        (lambda a: 1.0, "a float for"),
    ],
)
def test_what_cannot_be_added_to_a_leaf_is_refused_and_can_be_carried(coupling, returned, got):
    cell = Stationary(lambda s, x: (returned(s[0]), torch.tanh(s[1])))
    state = torch.ones(2, 3), torch.ones(1)
    with pytest.raises(ValueError, match=f"(?s){got}.*uncoupled="):
        COUPLINGS[coupling](cell)(state, None, 0)
    carried = COUPLINGS[coupling](cell, uncoupled="state[0]")(state, None, 0).current[0]
    assert same_state(carried, returned(state[0]))


@every_coupling
def test_a_start_of_one_row_under_inputs_of_several_is_refused(coupling):
    with pytest.raises(ValueError, match=r"shape \(5, 3\).*own shape \(1, 3\)"):
        BPTT()(COUPLINGS[coupling](Stationary(lambda z, x: torch.tanh(z + x))), torch.zeros(1, 3), torch.ones(5, 3), 4)


@every_coupling
@pytest.mark.parametrize(
    "write",
    [lambda z: z.tanh_(), lambda z: z.mul_(0.5).add(1), lambda z: z[0].zero_() + z],
    ids=["same", "other", "part"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cell_that_writes_into_its_state_is_refused(coupling, write, dtype):
    for estimator in (BPTT(), ReversibleBPTT()):
        start = torch.ones(2, 3, dtype=dtype)
        with pytest.raises(RuntimeError, match="in place"):
            estimator(COUPLINGS[coupling](Stationary(lambda z, x: write(z))), start, None, 4)
        assert torch.equal(start, torch.ones(2, 3, dtype=dtype))


@every_coupling
def test_so_is_one_that_counts_in_place(coupling):
    def counting(state, inputs):
        state["count"] += 1
        return {"z": torch.tanh(state["z"]), "count": state["count"]}

    state = {"z": torch.ones(2), "count": torch.zeros(2, dtype=torch.int64)}
    with pytest.raises(RuntimeError, match=r"count \+ 1 instead of"):
        COUPLINGS[coupling](Stationary(counting))(state, None, 0)


@every_coupling
def test_a_leaf_that_only_some_updates_change(coupling):
    linear, z, f = maps()

    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear

        def forward(self, state, inputs, step):
            a, b = f(*state)
            return (a if step % 3 else state[0], b if step % 2 else state[1])

    assert agree(COUPLINGS[coupling](Sometimes()), tuple(z), 11)
    assert agree(COUPLINGS[coupling](Sometimes(), uncoupled="state[1]"), tuple(z), 11)


@every_coupling
@pytest.mark.parametrize("uncoupled", [(), "state[1]"])
def test_leaves_that_change_places_or_are_one_tensor(coupling, uncoupled):
    linear, (a, b), f = maps()
    swap = COUPLINGS[coupling](
        Stationary(lambda s, x: (s[1], torch.tanh(linear(s[0]))), parameters=linear), uncoupled=uncoupled
    )
    assert agree(swap, (a, b))
    tied = COUPLINGS[coupling](Stationary(lambda s, x: f(*s), parameters=linear), uncoupled=uncoupled)
    assert agree(tied, [a, a])


@pytest.mark.one_in(2)
@every_coupling
@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3, 0, 2), (1, 1, 1, 1)])
def test_scalars_and_empty_leaves(coupling, shape):
    torch.manual_seed(0)
    gain, z = torch.tensor(0.5, requires_grad=True), torch.randn(3, 4).requires_grad_()
    extra = torch.full(shape, 0.3, requires_grad=True)
    cell = Stationary(lambda s, x: (torch.tanh(s[0] * gain + s[1].sum()), s[1].cos()), parameters=[gain])
    assert agree(COUPLINGS[coupling](cell), (z, extra), 60)
    assert agree(COUPLINGS[coupling](cell, uncoupled="state[1]"), (z, extra), 9)


@every_coupling
def test_a_complex_leaf_is_refused_with_the_remedies(coupling):
    state = torch.ones(1, 2), torch.ones(1, 2, dtype=torch.complex64)
    cell = Stationary(lambda s, x: (torch.tanh(s[0] + s[1].real), s[1] * torch.exp(1j * s[0])))
    with pytest.raises(TypeError, match=r"state\[1\] is torch.complex64.*view_as_real.*uncoupled=\(\"state\[1\]\",\)"):
        BPTT()(COUPLINGS[coupling](cell), state, None, 3)
    last = BPTT()(COUPLINGS[coupling](cell, uncoupled="state[1]"), state, None, 3).state
    assert last[1].dtype == torch.complex64 and bool((last[1] != 1).all())


def test_a_container_that_torch_does_not_know_is_refused():
    class Cache:
        keys: list = []

    with pytest.raises(TypeError, match=r"state\[1\] is a Cache.*tuple, list, dict or dataclass"):
        Damped(Stationary(lambda s, x: s)).couple((torch.ones(1), Cache()))


@every_coupling
def test_a_start_that_requires_grad_and_lies_in_another_order(coupling):
    linear, _, f = maps()
    z = [torch.randn(4, 3).T.requires_grad_(), torch.randn(3, 8)[:, ::2].requires_grad_()]
    for names in ((), "state[0]", "state[1]"):
        cell = Stationary(lambda s, x: f(*s), parameters=linear)
        assert agree(COUPLINGS[coupling](cell, uncoupled=names), tuple(z))


def test_in_inference_mode_too():
    z = torch.ones(1, 3)
    cell = Damped(Stationary(lambda s, x: (torch.tanh(s[0]), s[1] + 1)))
    with torch.inference_mode():
        state = cell.couple((z, torch.tensor(0)))
        for step in range(4):
            state = cell(state, None, step)
    assert int(state.current[1]) == 4


def test_under_leapfrog_both_copies_hold_a_sum():
    """The two copies of a_{t+1} = a_{t-1} + h g(z_t) add up to 2 a_0 + h times the sum of all g."""
    cell = Leapfrog(Stationary(lambda s, x: (torch.cos(s[0]), s[0].square())), scale=1 / 8)
    state, squares = cell.couple((torch.ones(1, 2), torch.full((1, 2), 0.5))), torch.zeros(1, 2)
    for step in range(9):
        squares = squares + cell.read(state)[0].square()
        state = cell(state, None, step)
    torch.testing.assert_close((state.current[1] + state.other[1]).float(), 1 + squares / 8, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_a_compiler_sees_one_graph_of_an_update():
    torch.manual_seed(0)
    linear = nn.Linear(4, 4)
    cell = Leapfrog(Stationary(lambda s, x: (torch.tanh(linear(s[0])), s[1] + 1), parameters=linear))
    state = cell.couple((torch.randn(2, 4), torch.tensor(0)))
    torch._dynamo.reset()
    with torch.no_grad():
        after = torch.compile(cell, backend="eager", fullgraph=True)(state, None, 0)
        assert same_state(after.current, cell(state, None, 0).current)
