"""Estimators where no tensor may be float64, as on Apple's GPUs, save in small systems that are solved on the CPU."""

import pytest
import torch
from shared_models import COUPLED, ESTIMATORS, Model, batch, loss_of
from torch.utils._python_dispatch import TorchDispatchMode

from loopgrad.gradients import CheckpointedBPTT, DepthDistribution, ImplicitGradient, ReversibleBPTT, wide
from loopgrad.gradients.solvers import Anderson, Broyden, fixed_point, linear
from loopgrad.models import Damped, Leapfrog, Momentum, coupled_state, stablemax_cross_entropy

OF_NUMBERS = torch.ops.aten._efficientzerotensor.default, torch.ops.aten.to.dtype_layout


class Forbidden(TorchDispatchMode):
    """Raises where an operator gives a float64 tensor, but within `allowed`."""

    allowed = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        of_number = isinstance(found, torch.Tensor) and not found.dim() and func in OF_NUMBERS
        if of_number:  # a Python number beside dual numbers, which torch keeps on the CPU, and tries on meta
            return found
        many = found if isinstance(found, tuple | list) else [found]
        if not Forbidden.allowed and any(isinstance(it, torch.Tensor) and it.dtype == torch.float64 for it in many):
            raise AssertionError(f"{func} gives float64")
        return found


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
    for module in (wide, coupled_state):
        monkeypatch.setattr(module, "has_float64", lambda device: False)


X = batch(torch.float32)


def gradients(model):
    rollout = model(X)
    loss_of(rollout).backward()
    return rollout.stats.numbers(), [parameter.grad for parameter in model.parameters()]


def whole(name, wrap=None):
    model = Model(name, torch.float32, whole=True)
    if name in COUPLED:
        inner = model.inner
        model.cell = (wrap or Damped)(inner, arithmetic="float32")
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
def test_couplings_of_float32_run_and_the_rest_is_refused_by_name(coupling):
    with Forbidden():
        gradients(whole("reversible damped", coupling))
        for arithmetic in ("exact", "float64"):
            model = whole(
                "reversible damped", lambda cell, arithmetic, kept=arithmetic: coupling(cell, arithmetic=kept)
            )
            for estimator in (ReversibleBPTT(), CheckpointedBPTT()):
                model.estimator = estimator
                with pytest.raises(
                    TypeError, match=rf"{coupling.__name__}\(arithmetic='{arithmetic}'\) .* cpu devices"
                ):
                    gradients(model)


def test_stablemax_is_computed_in_float32():
    logits = torch.tensor([[[2.0, 0.0, -1.0]]])
    with Forbidden():
        loss = stablemax_cross_entropy(logits, torch.tensor([[0]]))
    torch.testing.assert_close(loss.exp(), torch.tensor([[1.5]]))
