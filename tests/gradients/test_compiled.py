"""Nets, cells and models that inductor has compiled, under every estimator: exact, and not compiled for each update.

Inductor, for a compiler that makes no code of its own shows none of its faults: it reuses the memory of saved tensors.
"""

import pytest
import torch
from shared_models import ESTIMATORS, Model, batch, loss_of
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo.utils import counters

from loopgrad.gradients import BPTT, Estimator, ImplicitGradient

FORWARD = [name for name in ESTIMATORS if name.startswith("forward")]
WAYS = {
    "net": lambda model, **how: [block.compile(**how) for block in model.inner.blocks],
    "cell": lambda model, **how: model.inner.compile(**how),
    "model": lambda model, **how: model.compile(**how),
}
# graphs of the code that is compiled: with autograd and without, of an even and of an odd update, and of the first
MOST = {"net": 4, "cell": 7, "model": 8}
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


def check(way, name, **how):
    compiled = Model(name, whole=True)
    WAYS[way](compiled, **how)
    found = gradients(compiled)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs <= MOST[way]
    assert graphs == 1 or way != "model" or name not in FORWARD  # the encoder alone
    gradients(compiled)
    assert counters["stats"]["unique_graphs"] == graphs
    for ours, theirs in zip(found, gradients(Model(name, whole=True)), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler, of its own code
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("way", WAYS)
def test_compiled_code_has_the_gradient_of_eager_code(way, name, monkeypatch):
    monkeypatch.setattr("shared_models.NUM_STEPS", NUM_STEPS)
    if name in FORWARD and way != "model":
        with pytest.raises(TypeError, match=r"Forward\w+ runs the cell with tangents .* leave the cell .* uncompiled"):
            check(way, name)
    else:
        check(way, name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["checkpointed", "reversible damped"])
def test_a_compiled_model_is_not_compiled_for_each_update(name):
    check("model", name, backend="eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_estimators_of_many_kinds_are_met_by_the_compiler_once(monkeypatch):
    with torch._dynamo.config.patch(recompile_limit=64):  # of the model's own forward, for each number of updates
        for i, name in enumerate(ESTIMATORS):
            monkeypatch.setattr("shared_models.NUM_STEPS", 4 + i)
            model = Model(name, whole=True)
            WAYS["model"](model, backend="eager")
            gradients(model, calls=1)
    assert len(_debug_get_cache_entry_list(Estimator.__call__.__code__)) <= 1


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
