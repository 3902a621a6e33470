"""The user's module and torch's state are as they were, after an error, an interruption, and with a second thread."""

import random
import sys
import threading
import warnings
from contextlib import suppress

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import nn
from torch.overrides import _len_torch_function_stack

from loopgrad.analysis import (
    StateMap,
    cast,
    descent,
    evaluated_in,
    find_fixed_points,
    gradient_gaps,
    lyapunov,
    record,
    reference_gradients,
    rounding_error,
    spectral_radius,
)
from loopgrad.gradients import BPTT


class Cell(nn.Module):
    """Dropout, batch statistics, attention, a buffer that is replaced, a module under two names and a frozen weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.block = nn.ModuleList([nn.Linear(8, 8)] * 2)
        self.again = self.block[0]
        self.norm, self.dropout = nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.2)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))
        self.dropout.eval()
        self.frozen.eval()
        self.calls: torch.Tensor

    def forward(self, state, inputs, step):
        self.calls = self.calls + 1
        z = self.dropout(self.block[step % 2](state) + self.frozen(state) + inputs)
        rows = self.norm(z).unflatten(1, (2, 4)).repeat(1, 1, 2)
        return torch.tanh(0.3 * z + self.attention(rows, rows, rows)[0].mean(1))


X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
Z = torch.zeros(3, 8)


def loss(own, estimator=None, rows=None):
    dtype = own.frozen.weight.dtype
    return BPTT()(own, cast(Z, dtype), cast(X, dtype), 2).state.square().sum()


def gradient_of(cell):
    return {name: torch.ones_like(p) for name, p in cell.named_parameters() if p.requires_grad}


def spectrum(cell):
    f = StateMap(cell, Z, X)
    return spectral_radius(f, f.point)


ANALYSES = {
    "spectrum": spectrum,
    "exponents": lambda cell: lyapunov(f := StateMap(cell, Z, X), f.point, 10).mean,
    "native map": lambda cell: (f := StateMap(cell, Z, X, dtype=None))(f.point).numpy(),
    "search": lambda cell: find_fixed_points(f := StateMap(cell, Z, X), f.point, max_steps=1).residual,
    "reference": lambda cell: reference_gradients(loss, cell)["block.0.weight"].numpy(),
    "gaps": lambda cell: np.array(gradient_gaps({"bptt": BPTT()}, loss, cell, cell, Z, X, 2)[0].cosine),
    "descent": lambda cell: np.array(descent(gradient_of(cell), loss, cell, (1e-3,)).product),
}
MOVING = {  # which run the cell as it is, so that its buffers move
    "record": lambda cell: record(cell, Z, X, 3, reevaluate=torch.float64).joint,
    "rounding": lambda cell: rounding_error(cell, Z, X),
}


def noted(cell, buffers=True):
    """All that must be as it was, of the module and of torch."""
    modules = [(id(m), m.training, *map(tuple, (m._forward_hooks, m._forward_pre_hooks))) for m in cell.modules()]
    named = [(n, id(p), p.requires_grad, p._version, p.grad) for n, p in cell.named_parameters(remove_duplicate=False)]
    values = [(name, id(b), b._version, b.tolist()) for name, b in cell.named_buffers()] if buffers else []
    autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), _len_torch_function_stack()
    fast = torch.backends.mha.get_fastpath_enabled()
    return modules, named, values, autocast, modes, fast, forward_ad._current_level


def check_forward_differentiation():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, at first use
        forward_ad._maybe_load_decompositions()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(2), torch.ones(2))
        assert forward_ad.unpack_dual(dual * 3).tangent.tolist() == [3.0, 3.0]


def hooked():
    cell, seen = Cell(), []
    cell.again.register_forward_hook(lambda *_: seen.append("forward"))
    cell.again.weight.register_hook(lambda gradient: seen.append("gradient"))
    cell.norm.register_full_backward_hook(lambda *_: None)
    return cell


@pytest.mark.parametrize("name", ANALYSES)
def test_nothing_is_left_changed(name):
    cell = hooked()
    before, rng = noted(cell), torch.get_rng_state()
    ANALYSES[name](cell)
    assert noted(cell) == before and torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("name", [*ANALYSES, *MOVING])
def test_nothing_is_left_changed_by_an_error_in_the_cell(name):
    class Failing(Cell):
        made, failing = 0, 0

        def forward(self, state, inputs, step):
            state = super().forward(state, inputs, step)
            self.made += 1
            if self.made == self.failing:
                raise ArithmeticError("planted")
            return state

    analyse, counting = {**ANALYSES, **MOVING}[name], Failing()
    analyse(counting)
    for failing in {1, (counting.made + 1) // 2, counting.made}:
        cell = Failing()
        before, rng = noted(cell, name in ANALYSES), torch.get_rng_state()
        cell.failing = failing
        with suppress(ArithmeticError):  # raised, but where a map is tried on a sample alone
            analyse(cell)
        assert cell.made >= failing
        assert noted(cell, name in ANALYSES) == before and torch.equal(torch.get_rng_state(), rng)
    check_forward_differentiation()


def run_until(analyse, cell, stop):
    """Run an analysis, interrupted at a line of Python, as by Ctrl-C; return how many lines there were."""
    lines = 0

    def trace(frame, event, arg):
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == stop:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        analyse(cell)
    except KeyboardInterrupt:
        pass
    except RuntimeError as error:  # of torch's, where it had taken a mode off for the time of a call
        assert "empty mode stack" in str(error)
    finally:
        sys.settrace(None)
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ANALYSES, *MOVING])
def test_nothing_is_left_changed_by_an_interruption(name):
    analyse, cell, chance = {**ANALYSES, **MOVING}[name], hooked(), random.Random(0)
    analyse(cell)  # what torch loads at first use is loaded
    rng = torch.get_rng_state()
    lines = run_until(analyse, cell, -1)
    for stop in sorted(chance.sample(range(1, lines), 60)):
        before = noted(cell, name in ANALYSES)
        run_until(analyse, cell, stop)
        assert noted(cell, name in ANALYSES) == before, stop
        assert torch.equal(torch.get_rng_state(), rng), stop
        check_forward_differentiation()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.slow
def test_two_threads_analyse_one_module(training):
    cell = Cell().train(training)
    expected = {name: ANALYSES[name](cell) for name in ("spectrum", "exponents", "native map")}
    before, wrong = noted(cell), []

    def work(name):
        for _ in range(6):
            try:
                np.testing.assert_allclose(ANALYSES[name](cell), expected[name], rtol=1e-9)
            except Exception as error:
                wrong.append((name, error))

    threads = [threading.Thread(target=work, args=(name,)) for name in (*expected, *expected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and noted(cell) == before


def test_another_thread_computes_with_the_module_itself_meanwhile():
    linear, seen = nn.Linear(4, 4), []
    expected = linear(torch.ones(4))
    with evaluated_in(linear, torch.float64):
        thread = threading.Thread(target=lambda: seen.append(linear(torch.ones(4))))
        thread.start()
        thread.join()
        assert linear(torch.ones(4, dtype=torch.float64)).dtype == torch.float64
    assert torch.equal(seen[0], expected)


def test_a_module_in_evaluation_mode_is_never_written_to():
    class Watched(nn.Linear):
        def __setattr__(self, name, value):
            if getattr(self, "done", False):
                raise AssertionError(f"{name} was written")
            super().__setattr__(name, value)

    class Recursion(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = Watched(4, 4)

        def forward(self, state, inputs, step):
            return torch.tanh(self.linear(state))

    cell = Recursion().eval()
    cell.linear.done = True
    f = StateMap(cell, torch.ones(2, 4), None)
    assert spectral_radius(f, f.point).shape == (2,)
    record(cell, torch.ones(2, 4), None, 3, reevaluate=torch.float64)
    rounding_error(cell, torch.ones(2, 4), None)
