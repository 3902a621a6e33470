"""What cannot be called as cell(state, inputs, step) is refused with the wrapper that helps, and nothing else is."""

import functools
import gc
import weakref

import pytest
import torch
from torch import nn

from loopgrad.gradients import BPTT, CheckpointedBPTT, Stationary, jacobian_penalty
from loopgrad.gradients.cell_call import check_cell
from loopgrad.models import Damped


class Cell(nn.Module):
    """A cell in its plainest form."""

    def forward(self, state, inputs, step):
        return state + inputs


class TwoArguments(nn.Module):
    def forward(self, state, inputs):
        return state + inputs


class StepByName(nn.Module):
    def forward(self, state, inputs, *, step):
        return state + inputs


class Anything(nn.Module):
    def forward(self, *args, **kwargs):
        return args[0] + args[1]


class Defaults(nn.Module):
    def forward(self, state, inputs=None, step=0, gain=1.0, *, scale=1.0):
        return state + inputs


class OwnGRU(nn.GRUCell):
    def forward(self, state, inputs, step):
        return super().forward(inputs, state)


class OwnCall(nn.Module):
    def __call__(self, state, inputs, step):
        return self.forward(state + inputs)

    def forward(self, z):
        return z


class Wrapper(nn.Module):
    """As DistributedDataParallel calls what it holds."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs, **kwargs):
        return self.module(*inputs, **kwargs)


def replaced_by_a_partial():
    cell = TwoArguments()
    cell.forward = functools.partial(lambda gain, state, inputs, step: gain * (state + inputs), 1.0)
    return cell


def with_a_hook():
    cell = TwoArguments()
    cell.register_forward_pre_hook(lambda module, args: args[:2])
    return cell


def scripted():
    class Plain(nn.Module):
        def forward(self, state: torch.Tensor, inputs: torch.Tensor, step: int) -> torch.Tensor:
            return state + inputs

    return torch.jit.script(Plain())


def traced():
    class Plain(nn.Module):
        def forward(self, state, inputs, step):
            return state + inputs

    return torch.jit.trace(Plain(), (torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor(0)))


ALLOWED = [
    Cell,
    Anything,
    Defaults,
    lambda: OwnGRU(3, 3),
    OwnCall,
    lambda: Wrapper(Cell()),
    lambda: nn.DataParallel(Cell()),
    lambda: torch.compile(Cell(), backend="eager"),
    replaced_by_a_partial,
    with_a_hook,
    lambda: nn.utils.parametrizations.weight_norm(OwnGRU(3, 3), "weight_hh"),
    pytest.param(scripted, marks=pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")),
]


@pytest.mark.parametrize("make", ALLOWED)
def test_what_takes_three_arguments_is_a_cell(make):
    for _ in range(2):  # the second time from the cache
        state = BPTT()(make(), torch.zeros(2, 3), torch.ones(2, 3), num_steps=2).state
        assert state.shape == (2, 3)


REFUSED = {
    "gru": (lambda: nn.GRUCell(3, 3), r"GRUCell takes \(input, hx=None\).*lambda z, x: gru\(x, z\), parameters=gru"),
    "lstm": (lambda: nn.LSTMCell(3, 3), r"Stationary\(lambda z, x: lstm\(x, z\), parameters=lstm\)"),
    "rnn": (lambda: nn.RNNCell(3, 3), r"returns rnn\(inputs\[:, step\], state\)"),
    "whole sequence": (lambda: nn.GRU(3, 3), r"runs the recursion itself. Take nn.GRUCell"),
    "linear": (lambda: nn.Linear(3, 3), r"Linear takes \(input\).*lambda z, x: net\(z \+ x\), parameters=net"),
    "sequential": (lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh()), r"Sequential takes \(input\)"),
    # three positional arguments fit, but the number of the update would be taken for a mask
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2), r"takes \(src, src_mask=None"),
    "compiled": (lambda: torch.compile(nn.GRUCell(3, 3), backend="eager"), r"GRUCell takes \(input, hx=None\)"),
    "two arguments": (TwoArguments, r"TwoArguments takes \(state, inputs\).*lambda z, x: net\(z, x\)"),
    "data parallel": (lambda: nn.DataParallel(TwoArguments()), r"TwoArguments takes \(state, inputs\)"),
    "subclass": (lambda: type("Mine", (nn.GRUCell,), {})(3, 3), r"Mine takes .*lambda z, x: gru\(x, z\)"),
    "pair": (lambda: nn.LSTMCell(3, 3), r"z is the pair \(h, c\)"),
    "three tensors": (lambda: nn.MultiheadAttention(4, 2), r"average_attn_weights=True.*\). Give its forward"),
    "no forward": (nn.Module, r"Module has no forward: define forward\(self, state, inputs, step\)"),
    "step by name": (StepByName, r"takes \(state, inputs, \*, step\). Give its forward the arguments \(state, inputs,"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_is_refused_before_it_runs(name):
    make, said = REFUSED[name]
    for _ in range(2):
        with pytest.raises(TypeError, match=r"called as cell\(state, inputs, step\), but .*" + said):
            CheckpointedBPTT()(make(), torch.zeros(2, 3), torch.ones(2, 3), num_steps=2)
    with pytest.raises(TypeError, match=r"Damped\(cell=\.\.\.\) is called as.*" + said):
        Damped(make())
    with pytest.raises(TypeError, match=said):
        jacobian_penalty(make(), torch.zeros(2, 3), torch.ones(2, 3), 2)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_traced_module_is_given_the_benefit_of_the_doubt():
    check_cell(traced())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda z, x: z, r"function: wrap a plain map fn\(state, inputs\) as Stationary"),
        (
            lambda z, x, t: z,
            r"function of three arguments: make it the forward\(self, state, inputs, step\)",
        ),
        (nn.Linear, "the class Linear: pass an instance of it"),
        (torch.zeros(2), r"Tensor: the arguments are estimator\(cell, state, inputs, num_steps\), the cell first"),
        (None, "NoneType: the arguments are"),
    ],
)
def test_what_is_no_module_is_told_what_it_is(given, said):
    with pytest.raises(TypeError, match="cell must be an nn.Module.*" + said):
        BPTT()(given, torch.zeros(2, 3), torch.ones(2, 3), num_steps=2)


@pytest.mark.parametrize(("cell", "state"), [(nn.GRUCell, "h"), (nn.RNNCell, "h"), (nn.LSTMCell, "(h, c)")])
def test_the_wrappers_that_are_named_work(cell, state):
    net, z, x = cell(3, 4), torch.zeros(2, 4), torch.ones(2, 5, 3)
    start = z if state == "h" else (z, z)
    last = BPTT()(Stationary(lambda z, x: net(x, z), parameters=net), start, x[:, 0], num_steps=5).state

    class PerStep(nn.Module):
        def __init__(self, own):
            super().__init__()
            self.own = own

        def forward(self, state, inputs, step):
            return self.own(inputs[:, step], state)

    again = BPTT()(PerStep(net), start, x, num_steps=5).state
    assert all(map(torch.equal, *([pair] if state == "h" else pair for pair in (last, again))))


def test_a_class_that_was_looked_at_is_not_kept_alive():
    class Passing(nn.Module):
        def forward(self, state, inputs, step):
            return super().extra_repr() and state or state

    BPTT()(Passing(), torch.zeros(1), None, 1)
    known = weakref.ref(Passing)
    del Passing
    gc.collect()
    assert known() is None
