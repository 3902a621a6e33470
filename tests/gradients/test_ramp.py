"""An estimator that follows the training step, against the schedule of HRM-Text by hand."""

import pytest
import torch

from loopgrad.gradients import (
    BPTT,
    BackwardSteps,
    ForwardGradient,
    ImplicitGradient,
    LastOf,
    Ramp,
    RandomTruncation,
    RandomUpdates,
    TruncatedBPTT,
)
from loopgrad.gradients.ramp import estimator_at
from loopgrad.models import HRM

HRM_TEXT = Ramp(TruncatedBPTT(scope=BackwardSteps(5)), "scope.steps", first=2, last=5, over=200)


def gradient(estimator, H_cycles=2):
    torch.manual_seed(0)
    model = HRM(5, 6, hidden_size=8, num_heads=2, H_layers=1, L_layers=1, H_cycles=H_cycles, L_cycles=3, mixer="mlp")
    tokens = torch.randint(0, 5, (2, 6))
    model.double()(None, tokens, None, estimator).logits.square().sum().backward()
    return torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in model.parameters()])


def by_hand(steps, H_cycles=2, L_cycles=3):
    """The loops of HRM-Text: the last min(H_cycles, steps - 1) of z_H, and as many of z_L as are left."""
    torch.manual_seed(0)
    model = HRM(5, 6, hidden_size=8, num_heads=2, H_layers=1, L_layers=1, H_cycles=H_cycles, L_cycles=3, mixer="mlp")
    tokens = torch.randint(0, 5, (2, 6))
    model.double()
    of_H = min(H_cycles, steps - 1)
    x, state = model.encode(tokens), model.initial_state(2)
    for i in range(H_cycles):
        for k in range(i * L_cycles, (i + 1) * L_cycles):
            with torch.set_grad_enabled(k >= H_cycles * L_cycles - (steps - of_H)):
                state = {**state, "z_L": model.cell(state, x, i * (L_cycles + 1) + k % L_cycles)["z_L"]}
        with torch.set_grad_enabled(i >= H_cycles - of_H):
            state = {**state, "z_H": model.cell(state, x, i * (L_cycles + 1) + L_cycles)["z_H"]}
    model.readout(state)[0].square().sum().backward()
    return torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in model.parameters()])


@pytest.mark.parametrize("step", [0, 66, 67, 133, 134, 199, 200, 5000])
def test_the_schedule_of_hrm_text(step):
    steps = 2 + int(min(1, step / 200) * (5 - 2))
    assert HRM_TEXT.at(step) == TruncatedBPTT(scope=BackwardSteps(steps))


@pytest.mark.parametrize(("steps", "H_cycles"), [(2, 1), (4, 1), *((b, h) for b in (2, 3, 4, 5) for h in (2, 4))])
def test_its_backward_steps_are_those_of_its_loops(steps, H_cycles):
    found = gradient(TruncatedBPTT(scope=BackwardSteps(steps)), H_cycles)
    torch.testing.assert_close(found, by_hand(steps, H_cycles), rtol=1e-12, atol=1e-12)


def test_called_itself_it_is_the_last_one():
    assert torch.equal(gradient(HRM_TEXT), gradient(TruncatedBPTT(scope=BackwardSteps(5))))
    assert HRM_TEXT.kind == "biased"
    ramp = Ramp(RandomTruncation(mean_steps=3, seed=0, sigma=1), "seed", 0, 0, 1)
    assert ramp.kind == "unbiased" and ramp.outputs == "emitted" and ramp.by_sample is False
    assert estimator_at(BPTT(), 3) == BPTT() and estimator_at(HRM_TEXT, 0) == HRM_TEXT.at(0)


def test_it_may_fall_and_may_stand():
    down = Ramp(TruncatedBPTT(4), "num_steps", first=9, last=2, over=3)
    assert [down.at(step).num_steps for step in range(5)] == [9, 7, 5, 2, 2]
    assert [Ramp(TruncatedBPTT(4), "num_steps", 3, 3, 5).at(step).num_steps for step in (0, 9)] == [3, 3]
    fallback = Ramp(ImplicitGradient(), "fallback.num_steps", 2, 8, 6)
    assert [fallback.at(step).fallback.num_steps for step in (0, 3, 6)] == [2, 5, 8]


@pytest.mark.parametrize("make", [
    lambda: (ForwardGradient(num_tangents=2, seed=0), "num_tangents", 1, 3, lambda e: e.generator),
    lambda: (TruncatedBPTT(scope=RandomUpdates(0.5, seed=0)), "scope.seed", 0, 7, lambda e: e.scope.generator),
])  # fmt: skip
def test_noise_goes_on_from_step_to_step(make):
    estimator, parameter, first, last, generator = make()
    ramp = Ramp(estimator, parameter, first, last, over=4)
    assert all(generator(ramp.at(step)) is generator(estimator) for step in range(6))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Ramp(TruncatedBPTT(2), "num_step", 1, 2, 5), "TruncatedBPTT takes no 'num_step'.*num_steps"),
        (lambda: Ramp(TruncatedBPTT(2), "num_cycles", 1, 2, 5), "num_cycles=None.*goes over ints"),
        (lambda: Ramp(TruncatedBPTT(2), "num_steps", 0, 2, 5), r"Ramp\(first=0\).*at least 1"),
        (lambda: Ramp(TruncatedBPTT(2), "num_steps.k", 1, 2, 5), "num_steps=2, which has no 'k'"),
        (lambda: Ramp(TruncatedBPTT(scope=LastOf({"z_H": 1})), "scope.counts", 1, 2, 5), "goes over ints"),
        (lambda: Ramp(TruncatedBPTT(scope=BackwardSteps(3)), "scope.step", 2, 3, 5), "BackwardSteps takes no 'step'"),
        (lambda: Ramp(BPTT(), "k", 1, 2, 5), "BPTT takes no 'k'"),
        (lambda: Ramp(TruncatedBPTT(2), "num_steps", 1, 2, 0), r"over=0"),
        (lambda: Ramp(TruncatedBPTT(2), "num_steps", 1.5, 2, 5), r"first=1.5"),
        (lambda: Ramp(TruncatedBPTT(2), 3, 1, 2, 5), "must be the name"),
        (lambda: Ramp(HRM_TEXT, "last", 1, 2, 5), "no ramp itself"),
        (lambda: Ramp(3, "last", 1, 2, 5), "must be an estimator"),
        (lambda: BackwardSteps(1), r"BackwardSteps\(steps=1\)"),
    ],
)
def test_what_does_not_fit_is_refused(make, said):
    with pytest.raises((ValueError, TypeError), match=said):
        make()
