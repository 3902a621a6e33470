"""Leaves that are not coupled: counters, schedules, accumulators, flags, absent parts; each as the cell gives it."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from carrying_cells import COUPLINGS, carrying, every_coupling, flagged, loss_of
from torch import nn
from undoing import gradients_by_bptt, gradients_by_hand, run_forward, same_state

from loopgrad.gradients import BPTT
from loopgrad.models import Damped, Leapfrog, Momentum


@every_coupling
def test_a_carried_leaf_takes_the_value_that_the_cell_gives_it(coupling):
    """Against the loop over the bare cell: the counter and the schedule do not depend on what is coupled."""
    cell, state, x = carrying()
    last = BPTT()(COUPLINGS[coupling](cell, uncoupled=cell.uncoupled), state, x, 8).state
    plain = state
    for step in range(8):
        plain = cell(plain, x, step)
    assert last["clock"][0].dtype == torch.bfloat16 and float(last["clock"][0]) == 8
    assert torch.equal(last["clock"][1], plain["clock"][1])
    assert last["total"].dtype == torch.float64 and last["z"].dtype == torch.float32


@every_coupling
def test_an_accumulator_is_the_sum_of_what_was_made(coupling):
    cell, state, x = carrying()
    coupled = COUPLINGS[coupling](cell, uncoupled=cell.uncoupled)
    states, _ = run_forward(coupled, state, x, 9)
    total = state["total"]
    for step, before in enumerate(states[:-1]):
        read = coupled.read(before)
        made = cell(read, x, step)
        total = total + (made["total"] - read["total"])
        assert torch.equal(states[step + 1].current["seen"], read["z"])
        assert torch.equal(made["total"], states[step + 1].current["total"])
    torch.testing.assert_close(states[-1].current["total"], total, rtol=1e-14, atol=0)


@every_coupling
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_by_undoing_are_those_of_bptt_to_the_bit(coupling, dtype):
    cell, state, x = carrying(dtype)
    coupled = COUPLINGS[coupling](cell, uncoupled=cell.uncoupled)
    mine, theirs = (
        by(coupled, state, x, 13, loss_of, list(cell.parameters())) for by in (gradients_by_hand, gradients_by_bptt)
    )
    assert same_state(mine[0], theirs[0])
    assert len(mine[1]) == 8 and all(g is not None for g in theirs[1])
    if coupling == "float64":  # undone up to rounding
        for a, b in zip(mine[1], theirs[1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    else:
        assert all(map(torch.equal, mine[1], theirs[1]))


@pytest.mark.parametrize("name", ["damped", "leapfrog", "momentum"])
def test_the_recursion_and_its_gradient_are_those_of_the_equation(name):
    """In float64, with the coupled leaf by its equation and the others as the cell returns them."""
    cell, state, x = carrying(torch.float64)
    state["clock"][0] = state["clock"][0].double()
    coupled = COUPLINGS[name](cell, uncoupled=cell.uncoupled)
    sources = [state["z"], state["clock"][1], state["total"], state["seen"], *cell.parameters()]
    now, other = state, torch.zeros_like(x) if name == "momentum" else state["z"]
    for step in range(12):
        made = cell(now, x, step)
        if name == "momentum":
            other = 7 / 8 * other + 1 / 8 * made["z"]
            now = made | {"z": now["z"] + other}
        else:
            kept, factor = (0.75, 0.25) if name == "damped" else (1, 1 / 16)
            now, other = made | {"z": kept * other + factor * made["z"]}, now["z"]
    last = BPTT()(coupled, state, x, 12).state
    for key in ("z", "total", "seen"):
        torch.testing.assert_close(last[key], now[key], rtol=0, atol=1e-7)
    pairs = zip(*(torch.autograd.grad(loss_of(s), sources) for s in (last, now)), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


@every_coupling
def test_flags_ids_counters_and_absent_parts_are_carried_and_undone(coupling):
    cell, state, x = flagged()
    coupled = COUPLINGS[coupling](cell, uncoupled="state[5]")
    last = coupled.read(run_forward(coupled, state, x, 9)[0][-1])
    plain = state
    for step in range(9):
        plain = cell(plain, x, step)
    assert same_state(last[1:5], plain[1:5]) and last[4] == 9 and last[5] is not None

    def loss(state):
        return state[0].sin().sum() + (state[5] ** 2).sum()

    if coupling != "float64":
        mine, theirs = (
            by(coupled, state, x, 9, loss, list(cell.parameters())) for by in (gradients_by_hand, gradients_by_bptt)
        )
        assert same_state(mine[0], theirs[0]) and all(map(torch.equal, mine[1], theirs[1]))


@dataclass
class Carry:
    z: Any
    memory: Any


class Counting(nn.Module):
    def forward(self, state, inputs, step):
        memory = {"count": state.memory["count"] + 1, "halves": [state.memory["halves"][0] / 2]}
        return Carry(torch.tanh(state.z), memory)


@pytest.mark.parametrize(
    "names", ["state.memory", ("state.memory['count']", "state.memory['halves'][0]"), ["state.memory['halves']"]]
)
def test_leaves_are_named_one_by_one_or_by_their_branch(names):
    state = Carry(torch.ones(1, 2), {"count": torch.zeros(1), "halves": [torch.ones(1)]})
    last = BPTT()(Damped(Counting(), uncoupled=names), state, None, 6).state
    assert float(last.memory["halves"][0]) == 2**-6
    assert (float(last.memory["count"]) == 6) == (names != ["state.memory['halves']"])


@pytest.mark.parametrize(
    ("names", "nearest"),
    [
        ("state.memory['cuont']", r"nearest are state\.memory\['count'\]"),
        ("memory.halves", r"nearest are state\.memory\['halves'\]\[0\]"),
        ("state.mem", "nearest"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest(names, nearest):
    state = Carry(torch.ones(1, 2), {"count": torch.zeros(1), "halves": [torch.ones(1)]})
    for coupling in (Damped, Leapfrog, Momentum):
        with pytest.raises(ValueError, match=f"{coupling.__name__}.*no leaf or branch.*{nearest}"):
            BPTT()(coupling(Counting(), uncoupled=names), state, None, 6)


def test_names_that_leave_nothing_or_are_no_names_are_refused():
    with pytest.raises(ValueError, match="leaves nothing to couple"):
        Damped(Counting(), uncoupled=("state.z", "state.memory")).couple(Carry(torch.ones(1), [torch.ones(1)]))
    with pytest.raises(TypeError, match="takes names of leaves"):
        Damped(Counting(), uncoupled=[1])  # pyright: ignore


@pytest.mark.parametrize("num_steps", [4, 64])
def test_an_uncoupled_leaf_costs_one_saved_copy_per_update(num_steps):
    cell, state, x = carrying()
    for coupling, words in (("leapfrog", 0), ("damped", None)):
        _, notes = run_forward(COUPLINGS[coupling](cell, uncoupled=cell.uncoupled), state, x, num_steps)
        totals = sum(step % 3 > 0 for step in range(num_steps))
        carried = num_steps * (2 + 4 + 12 * 4) + totals * 3 * 8
        saved = sum(t.nbytes for note in notes for t in note.dropped if t.dtype != torch.uint8)
        assert saved == carried
        assert words is None or sum(t.nbytes for note in notes for t in note.dropped) == carried
