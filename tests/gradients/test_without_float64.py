"""Estimators where no tensor may be float64, as on Apple's GPUs, save in small systems that are solved on the CPU."""

from functools import partial

import pytest
import torch
from shared_models import ESTIMATORS, Model, batch, loss_of
from without_float64 import Forbidden

from loopgrad.gradients import CheckpointedBPTT, DepthDistribution, ImplicitGradient, ReversibleBPTT, wide
from loopgrad.gradients.solvers import Anderson, Broyden, fixed_point, linear
from loopgrad.models import Damped, Leapfrog, Momentum, stablemax_cross_entropy


@pytest.fixture(autouse=True)
def no_float64(monkeypatch):
    """The CPU passes for a device without float64, and its host is the CPU."""

    def on_host(fn):
        def call(*args):
            Forbidden.allowed += 1
            try:
                return fn(*args)
            finally:
                Forbidden.allowed -= 1

        return call

    for module in (fixed_point, linear):
        monkeypatch.setattr(module, "in_float64", on_host(wide.in_float64))
    monkeypatch.setattr(DepthDistribution, "sample", on_host(DepthDistribution.sample))  # its generator is of the CPU
    monkeypatch.setattr(wide, "has_float64", lambda device: False)


X = batch(torch.float32)


def gradients(model):
    rollout = model(X)
    loss_of(rollout).backward()
    return rollout.stats.numbers(), [parameter.grad for parameter in model.parameters()]


def whole(name, wrap=None):
    model = Model(name, torch.float32, whole=True)
    if wrap is not None:
        model.cell = wrap(model.inner)
    return model


MORE = {
    "forward anderson": ImplicitGradient(forward=Anderson(), rtol=1e-4),
    "forward broyden": ImplicitGradient(forward=Broyden(), rtol=1e-4),
    **{solver: ImplicitGradient(solver, rtol=1e-4) for solver in ("gmres", "bicgstab", "neumann", "anderson")},
}


@pytest.mark.parametrize("name", [*ESTIMATORS, *MORE])
def test_no_estimator_needs_float64(name):
    model = whole(name if name in ESTIMATORS else "bptt")
    model.estimator = MORE.get(name) or model.estimator
    with Forbidden():
        numbers, found = gradients(model)
    assert all(type(value) is float for value in numbers.values())
    assert all(gradient is None or gradient.dtype == torch.float32 for gradient in found)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in found)


@pytest.mark.parametrize("coupling", [Damped, Leapfrog, Momentum])
def test_couplings_of_float64_are_refused_by_name_and_the_others_run(coupling):
    with Forbidden():
        for arithmetic in ("exact", "float32"):
            gradients(whole("reversible damped", partial(coupling, arithmetic=arithmetic)))
        model = whole("reversible damped", partial(coupling, arithmetic="float64"))
        for estimator in (ReversibleBPTT(), CheckpointedBPTT()):
            model.estimator = estimator
            with pytest.raises(TypeError, match=rf"{coupling.__name__}\(arithmetic='float64'\) .* cpu devices"):
                gradients(model)


def test_stablemax_is_computed_in_float32():
    logits = torch.tensor([[[2.0, 0.0, -1.0]]])
    with Forbidden():
        loss = stablemax_cross_entropy(logits, torch.tensor([[0]]))
    torch.testing.assert_close(loss.exp(), torch.tensor([[1.5]]))
