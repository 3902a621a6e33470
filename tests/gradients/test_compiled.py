"""Nets and cells that inductor has compiled, under every estimator: exact, and not compiled for each update.

Inductor, for a compiler that makes no code of its own shows none of its faults: it reuses the memory of saved tensors.
"""

import pytest
import torch
from shared_models import Model, batch, loss_of
from torch._dynamo.utils import counters

from loopgrad.gradients import BPTT, ImplicitGradient

NAMES = ("bptt", "checkpointed", "truncated", "phantom", "reversible leapfrog", "implicit solved", "implicit fallback")
WAYS = {
    "net": lambda model: [block.compile() for block in model.inner.blocks],
    "cell": lambda model: model.inner.compile(),
}
NUM_STEPS = 21


@pytest.fixture(autouse=True)
def own_compiler(monkeypatch):
    """No code of another test, one thread, and an error where code would be made for each update."""
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


def gradients(model, estimator=None, calls=2):
    if estimator is not None:
        model.estimator = estimator
    for _ in range(calls):
        model.zero_grad()
        loss_of(model(batch())).backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler, of its own code
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", WAYS)
def test_compiled_code_has_the_gradient_of_eager_code(way, name, monkeypatch):
    monkeypatch.setattr("shared_models.NUM_STEPS", NUM_STEPS)
    compiled = Model(name, whole=True)
    WAYS[way](compiled)
    for ours, theirs in zip(gradients(compiled), gradients(Model(name, whole=True)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", [BPTT(), ImplicitGradient(forward_rtol=0), None], ids=["bptt", "fallback", "none"])
def test_an_implicit_gradient_of_code_that_was_compiled_before(first):
    solved = ImplicitGradient(rtol=0, max_vjps=8, on_unconverged="ignore")
    compiled, eager = Model("bptt", whole=True), Model("bptt", whole=True)
    WAYS["net"](compiled)
    if first is not None:
        gradients(compiled, first)
    for ours, theirs in zip(gradients(compiled, solved), gradients(eager, solved), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
