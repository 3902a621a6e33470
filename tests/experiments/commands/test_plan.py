"""loopgrad plan as a user types it: a table, the cheapest exact one, and one line for what was asked for wrongly."""

import re
import sys

import pytest

from loopgrad.gradients.budget import parse_bytes

CELLS = """
import torch
from torch import nn

class Cell(nn.Module):
    def __init__(self, size=8):
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, state, inputs, step):
        return torch.tanh(self.linear(state) + (0 if inputs is None else inputs))

class Tokens(Cell):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 8)

    def forward(self, state, inputs, step):
        return torch.tanh(self.linear(state) + self.table(inputs).mean(1))

class Asks(Cell):
    def forward(self, state, inputs, step):
        return state * state.max().item()

made, number, broken = Cell(), 3, lambda: 1 / 0
"""
TINY = "model.hidden_size=16", "model.num_heads=2", "trainer.batch_size=4"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Cells of the user's own, in the folder that the command is typed in."""
    (tmp_path / "cells_of_mine.py").write_text(CELLS)
    (tmp_path / "broken_of_mine.py").write_text("raise KeyError('no such thing')")
    yield "cells_of_mine"
    for name in ("cells_of_mine", "broken_of_mine"):
        sys.modules.pop(name, None)


def rows_of(out):
    lines = [line.split() for line in out.splitlines()]
    return {words[0]: words for words in lines if len(words) > 5 and words[1] in ("yes", "no")}


def test_a_model_has_a_row_for_each_estimator_and_the_cheapest_exact_one_is_named(loopgrad, tmp_path):
    result = loopgrad("plan", *TINY, "estimator=[bptt,checkpointed,one_step]")
    assert result.code == 0, result.err
    rows = rows_of(result.out)
    assert rows.keys() == {"bptt", "checkpointed", "one_step"}
    assert "The cheapest exact gradient that fits 24GiB: bptt." in result.out
    assert rows["checkpointed"][-3:-1] == ["12", "6"] and rows["bptt"][-3:-1] == ["6", "6"]
    assert list(tmp_path.iterdir()) == []  # it writes nothing


def test_where_nothing_exact_is_asked_for_nothing_is_said_of_what_fits(loopgrad):
    result = loopgrad("plan", *TINY, "estimator=one_step")
    assert "None of these is exact: estimator=[bptt,checkpointed] are." in result.out


@pytest.mark.slow
def test_a_smaller_memory_makes_another_the_cheapest_and_auto_is_told_its_budget(loopgrad):
    result = loopgrad(
        "plan", *TINY, "trainer.batch_size=64", "estimator=[bptt,auto]", "memory_budget=20MiB", "model.H_cycles=4"
    )
    assert result.code == 0, result.err
    rows = rows_of(result.out)
    assert rows["bptt"][1] == "no" and rows["auto"][1] == "yes"
    assert "estimator.auto.memory_budget=" in result.out and "fits 20MiB: auto." in result.out


def test_what_a_message_says_to_type_fits(loopgrad, refused, mine):
    own = ["plan", f"cell={mine}:Cell", "state=[8]", "num_steps=6"]
    message = refused(*own, "estimator=bptt", "memory_budget=10")
    (least,) = re.findall(r"the least is (\w+), with bptt", message)
    assert rows_of(loopgrad(*own, "estimator=bptt", f"memory_budget={least}").out)["bptt"][1] == "yes"
    told = loopgrad(*own, "estimator=auto", f"memory_budget={parse_bytes(least) + 2**16}").out
    (typed,) = re.findall(r"estimator.auto.memory_budget=(\w+)", told)
    assert parse_bytes(typed) <= parse_bytes(least) + 2**16


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "typed",
    [
        ["Cell", "state=[8]", "inputs=[8]"],
        ["Cell", "state=[8]", "xs=[8]"],
        ["made", "state=[8]"],
        ["Tokens", "state=[8]", "inputs=[9,int64]"],
    ],
    ids=str,
)
def test_a_cell_of_the_users_own_is_planned_from_shapes(loopgrad, mine, typed):
    result = loopgrad("plan", f"cell={mine}:{typed[0]}", *typed[1:], "num_steps=6", "estimator=[bptt,checkpointed]")
    assert result.code == 0, result.err
    rows = rows_of(result.out)
    assert rows["bptt"][-3:-1] == ["6", "6"] and rows["checkpointed"][-3:-1] == ["12", "6"]


@pytest.mark.slow
def test_gradients_of_what_is_data_take_nothing(loopgrad, mine):
    cell = ["plan", f"cell={mine}:Cell", "state=[8]", "inputs=[8]", "num_steps=6", "estimator=[rtrl]"]
    sizes = []
    for wanted in ("[state,inputs,xs]", "[inputs]", "[]"):
        told = rows_of(loopgrad(*cell, f"requires_grad={wanted}").out)["rtrl"]
        sizes.append(parse_bytes("".join(told[-5:-3])))
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["task=babi15", "model=latent_loop", "task.path=nowhere"], ["nowhere: no folder", "en-10k"]),
        (["memory_budget=24Gip"], ["memory_budget='24Gip'", "1.5GiB"]),
        (["memory_budget=1KiB", "estimator=bptt"], ["memory_budget=1KiB", "too small", "the least is", "bptt"]),
        (["copies=-1"], ["copies=-1"]),
        (["state=[8]"], ["state=[8]", "cell=module:attribute"]),
        (["requires_grad=[]"], ["requires_grad=[]", "cell=module:attribute"]),
        (["cell=cells_of_mine", "num_steps=3", "state=[8]"], ["cell=cells_of_mine", "module:attribute"]),
        (
            ["cell=nowhere.at.all:Cell", "num_steps=3", "state=[8]"],
            ["nowhere.at.all", "cannot be imported", "PYTHONPATH"],
        ),
        (["cell=broken_of_mine:Cell", "num_steps=3", "state=[8]"], ["broken_of_mine", "no such thing"]),
        (["cell=cells_of_mine:Cel", "num_steps=3", "state=[8]"], ["has no Cel", "did you mean Cell"]),
        (["cell=cells_of_mine:number", "num_steps=3", "state=[8]"], ["number", "is of type int", "torch.nn.Module"]),
        (["cell=cells_of_mine:broken", "num_steps=3", "state=[8]"], ["cells_of_mine:broken", "division by zero"]),
        (
            ["cell=cells_of_mine:Asks", "num_steps=3", "state=[8]"],
            ["cells_of_mine:Asks", "values of", "measure"],
        ),
        (["cell=cells_of_mine:Cell", "num_steps=3", "state=[7]"], ["cells_of_mine:Cell", "fails on these shapes"]),
        (["cell=cells_of_mine:Cell", "num_steps=3"], ["state", "state=[81,512]"]),
        (["cell=cells_of_mine:Cell", "state=[8]"], ["num_steps=None"]),
        (["cell=cells_of_mine:Cell", "num_steps=3", "state=[8,flot32]"], ["flot32", "float32"]),
        (["cell=cells_of_mine:Cell", "num_steps=3", "state=[0]"], ["state=[0]", "sizes"]),
        (["cell=cells_of_mine:Cell", "num_steps=3", "state=8"], ["state=8", "state=[81,512]"]),
        (["cell=cells_of_mine:Cell", "num_steps=3", "state=[8]", "requires_grad=[x]"], ["['x']", "state, inputs, xs"]),
    ],
    ids=lambda it: " ".join(it),
)
def test_what_is_asked_for_wrongly_is_one_line_that_names_it(refused, mine, typed, words):
    message = refused("plan", *TINY, *typed)
    assert all(word in message for word in words), message
