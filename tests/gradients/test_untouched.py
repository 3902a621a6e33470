"""Whatever interrupts a rollout or its backward pass, the module and torch's state are afterwards as they were."""

import random
import sys
import threading
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.overrides import _len_torch_function_stack
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    ForwardGradient,
    ForwardMode,
    ImplicitGradient,
    PhantomGradient,
    ReversibleBPTT,
    TruncatedBPTT,
    Until,
)
from loopgrad.models import Damped, Leapfrog


class Attending(nn.Module):
    """Dropout, a block under two names, torch's attention, a hook: what estimators must put back or leave alone."""

    def __init__(self, buffers: bool = True):
        super().__init__()
        self.first = self.second = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.drop, self.norm = nn.Dropout(0.1), nn.BatchNorm1d(3) if buffers else nn.LayerNorm(8)
        self.calls: list[int] = []
        self.first.weight.register_hook(lambda grad: self.calls.append(1))

    def forward(self, state, inputs, step):
        z = self.attention(state, state, state, need_weights=False)[0]
        return torch.tanh(self.norm(self.drop(self.second(torch.tanh(self.first(z)))) + inputs))


ESTIMATORS = {
    "bptt": BPTT(),
    "sqrt": CheckpointedBPTT(),
    "binomial": CheckpointedBPTT("binomial", num_snapshots=1),
    "budget": CheckpointedBPTT(memory_budget="1MiB"),
    "truncated": TruncatedBPTT(num_steps=2),
    "phantom": PhantomGradient(num_steps=2),
    "implicit": ImplicitGradient(max_vjps=3),
    "forward_gradient": ForwardGradient(2, seed=0),
    "forward_mode": ForwardMode(parameters=["norm.weight"]),
    "damped": ReversibleBPTT(),
    "leapfrog": ReversibleBPTT(anchors=2),
    "ended": partial(BPTT(), until=Until(lambda z, *_: z.flatten(1).sum(1).sin() > 0.5, every=2)),
    "ended_sqrt": partial(CheckpointedBPTT(), until=Until(lambda z, *_: z.flatten(1).sum(1).sin() > 0.5, every=2)),
}
WITH_BUFFERS = ("bptt", "sqrt", "binomial", "budget", "truncated", "phantom", "ended", "ended_sqrt")
WRAPS = {"damped": Damped, "leapfrog": Leapfrog}


def problem(name):
    torch.manual_seed(0)
    own = Attending(buffers=name in WITH_BUFFERS)
    cell = WRAPS[name](own) if name in WRAPS else own
    for i, module in enumerate(cell.modules()):
        module.training = i % 3 != 1
    return cell


def step(name, cell):
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    state = ESTIMATORS[name](cell, torch.zeros(2, 3, 8), x, 5).state
    state.float().square().sum().backward()


def seen(cell):
    """What must not change: of the module, and of torch."""
    module = [
        [
            (n, id(p), type(p), p.requires_grad, p.is_leaf, len(p._backward_hooks or ()))
            for n, p in cell.named_parameters()
        ],
        [(n, id(b)) for n, b in cell.named_buffers()],
        [
            (n, m.training, len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m)))
            for n, m in cell.named_modules()
        ],
    ]
    backends = torch.backends
    state = [
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.autocast_increment_nesting() - torch.autocast_decrement_nesting() - 1,
        _len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        is_in_torch_dispatch_mode(),
        torch._C._autograd._top_saved_tensors_default_hooks(True),
        backends.mha.get_fastpath_enabled(),
        backends.cuda.math_sdp_enabled(),
        backends.cuda.flash_sdp_enabled(),
        backends.cuda.mem_efficient_sdp_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch._C._functorch.get_dynamic_layer_stack_depth(),
        torch.autograd.forward_ad._current_level,
        list(warnings.filters),
    ]
    return module, state


class Interrupted:
    """Raises KeyboardInterrupt at the given line event; counts them all if that is none."""

    def __init__(self, at=None):
        self.at, self.count = at, 0

    def __enter__(self):
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def trace(self, frame, event, argument):
        if event == "line":
            self.count += 1
            if self.count == self.at:
                self.at = None  # once
                raise KeyboardInterrupt
        return self.trace


def interrupt(name, count, seed):
    cell = problem(name)
    step(name, cell)  # what is made at a first use is made
    with Interrupted() as whole:
        step(name, cell)
    draw, hits = random.Random(seed), 0
    for _ in range(count):
        cell.zero_grad()
        before = seen(cell)
        try:
            with Interrupted(draw.randrange(1, whole.count)):
                step(name, cell)
        except BaseException as error:
            while error is not None and not isinstance(error, KeyboardInterrupt):
                error = error.__context__  # torch may fail over what an interruption has left half done
            assert error is not None
            hits += 1
        assert seen(cell) == before, f"after {hits} interruptions"
    assert hits > 0.8 * count
    # and it still works, as if nothing had happened
    fresh = problem(name)
    for p, q in zip((*fresh.parameters(), *fresh.buffers()), (*cell.parameters(), *cell.buffers()), strict=True):
        p.data.copy_(q.data)
    for one in (fresh, cell):
        one.zero_grad()
        torch.manual_seed(5)
        step(name, one)
    if name not in ("forward_gradient",):  # whose own generator has gone on
        assert all(
            torch.equal(p.grad, q.grad)
            for p, q in zip(fresh.parameters(), cell.parameters(), strict=True)
            if p.grad is not None
        )


@pytest.mark.parametrize("name", ["sqrt", "leapfrog", "ended"])
def test_an_interruption_leaves_no_trace(name):
    interrupt(name, 12, seed=0)


in_a_finalizer = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python ignores it


@in_a_finalizer
@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_five_hundred_interruptions_leave_no_trace(name):
    interrupt(name, 100 if name == "ended_sqrt" else 500, seed=1)


@in_a_finalizer
@pytest.mark.slow
@pytest.mark.parametrize("name", ["sqrt", "damped", "implicit"])
def test_interruptions_under_autocast_leave_no_trace(name):
    with torch.autocast("cpu", torch.bfloat16):
        interrupt(name, 200, seed=2)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_exception_in_the_cell_leaves_no_trace(name):
    cell = problem(name)
    drop = cell.drop if isinstance(cell, Attending) else cell.cell.drop
    for fails_at in (1, 3, 6, 8):
        calls = []

        def fail(module, args, fails_at=fails_at, calls=calls):
            calls.append(1)
            if len(calls) == fails_at:
                raise FloatingPointError("a fault of the cell's own")

        handle, before = drop.register_forward_pre_hook(fail), seen(cell)
        try:
            step(name, cell)
        except FloatingPointError:
            pass
        assert seen(cell) == before
        handle.remove()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ["bptt", "sqrt", "truncated", "implicit", "leapfrog", "forward_mode"])
def test_four_threads_share_a_cell(name):
    cell = problem(name).eval()
    alone, before = [], seen(cell)
    inputs = [torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]

    def gradients(x):
        x = x.clone().requires_grad_()
        state = ESTIMATORS[name](cell, torch.zeros(2, 3, 8), x, 6).state
        wanted = [p for p in cell.parameters() if name != "forward_mode" or p is cell.norm.weight]
        return torch.autograd.grad(state.square().sum(), wanted)

    alone = [gradients(x) for x in inputs]
    found, failed = [None] * 4, []

    def work(i):
        try:
            for _ in range(6):
                found[i] = gradients(inputs[i])
                assert torch.is_grad_enabled()
        except BaseException as error:  # a test must hear of it
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and seen(cell) == before
    assert all(
        torch.equal(a, b) for mine, theirs in zip(found, alone, strict=True) for a, b in zip(mine, theirs, strict=True)
    )
