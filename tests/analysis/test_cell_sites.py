"""Which module a recorder takes for the cell, whatever its arguments are called, and the reason where it finds none."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from loopgrad.analysis import CellSite, Recorder
from loopgrad.gradients import BPTT, TruncatedBPTT


class Short(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, z, x, t):
        return torch.tanh(self.lin(z))


class Optional(Short):
    def forward(self, h, context=None, iteration=0, **more):
        return torch.tanh(self.lin(h))


class Starred(Short):
    def forward(self, *given):
        return torch.tanh(self.lin(given[0]))


class Outer(nn.Module):
    """Runs its cell, by position or by name."""

    def __init__(self, cell, by_name=False):
        super().__init__()
        self.block, self.by_name, self.other = cell, by_name, nn.Linear(4, 4)

    def forward(self, z):
        for step in range(3):
            z = self.block(t=step, z=z, x=None) if self.by_name else self.block(z, None, step)
        return z


class Levels(nn.Module):
    """Has the layout of the official classes, of which an adapter uses the level alone."""

    def __init__(self):
        super().__init__()
        self.L_level = nn.Linear(4, 4)
        self.config = SimpleNamespace(H_cycles=3, L_cycles=2)


class Adapter(nn.Module):
    period = 3

    def __init__(self):
        super().__init__()
        self.inner = Levels()

    def forward(self, state, inputs, step):
        return torch.tanh(self.inner.L_level(state))


class ShortAdapter(Adapter):
    def forward(self, z, x, t):
        return torch.tanh(self.inner.L_level(z))


class NoPeriod(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Levels()

    def forward(self, z, x, t):
        return torch.tanh(self.inner.L_level(z))


@pytest.mark.parametrize("sites", [None, CellSite(), CellSite("")])
@pytest.mark.parametrize("kind", [Short, Optional, Starred, Adapter, ShortAdapter])
def test_a_cell_is_read_whatever_its_arguments_are_called(kind, sites):
    cell, recorder = kind(), Recorder()
    with recorder.attach(cell, sites):
        BPTT()(cell, torch.ones(2, 4), None, 9)
    assert recorder.trace().num_steps == 9 and recorder.trace().period == getattr(kind, "period", 1)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_cell_within_a_model_is_found_and_may_be_called_by_name(by_name):
    model, recorder = Outer(Short(), by_name), Recorder()
    with recorder.attach(model):
        model(torch.ones(2, 4))
    assert recorder.trace().num_steps == 3


def test_the_layout_of_the_official_classes_that_does_not_run_says_so():
    cell = NoPeriod()
    with pytest.raises(RuntimeError, match=r"L_level was called, but not by inner.*CellSite") as raised:
        with Recorder().attach(cell):
            BPTT()(cell, torch.ones(2, 4), None, 9)
    assert "compiled" not in str(raised.value)
    recorder = Recorder()
    with recorder.attach(cell, CellSite()):
        BPTT()(cell, torch.ones(2, 4), None, 9)
    assert recorder.trace().num_steps == 9


def test_a_level_by_name_alone_is_not_the_official_layout():
    class Own(Short):
        def __init__(self):
            super().__init__()
            self.L_level = nn.Linear(4, 4)

    cell, recorder = Own(), Recorder()
    with recorder.attach(cell):
        BPTT()(cell, torch.ones(2, 4), None, 2)
    assert recorder.trace().num_steps == 2


def test_a_run_that_does_not_begin_at_step_0_is_named():
    cell = Short()
    with pytest.raises(RuntimeError, match="first at step=2, and never at step=0") as raised, Recorder().attach(cell):
        cell(torch.ones(2, 4), None, 2)
    assert "compiled" not in str(raised.value)


def test_what_is_no_cell_is_named():
    class Attend(nn.Module):
        def forward(self, query, key, value):
            return query + key + value

    x = torch.ones(2, 4)
    model = Attend()
    with pytest.raises(TypeError, match="third argument, value, is a Tensor.*CellSite"), Recorder().attach(model):
        model(x, x, x)
    with pytest.raises(TypeError, match="CellSite.*Linear takes"), Recorder().attach(Short(), CellSite("lin")):
        pass


def test_truncated_runs_are_read_too():
    cell, recorder = Optional(), Recorder()
    with recorder.attach(cell):
        TruncatedBPTT(num_steps=2)(cell, torch.ones(2, 4), None, 5).state.sum().backward()
    assert recorder.trace().num_steps == 5
