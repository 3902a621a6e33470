"""Online gradients of losses that are learnt: their derivatives are differences of numbers near 1, mostly rounding."""

import pytest
import torch
from torch.nn import functional as F

from loopgrad.gradients import BPTT, KFRTRL, RTRL, DiagonalRTRL, SnAp, Stationary

ONLINE = {"rtrl": RTRL(), "snap": SnAp(1), "diagonal": DiagonalRTRL(), "kf": KFRTRL(seed=0)}
UPDATES, BATCH, WIDTH, FEATURES = 12, 8, 3, 6


def problem(seed: int, sure: float, dtype=torch.float32):
    """A GRU and a loss of two classes whose logits are `sure` apart, where it names the right one always."""
    generator = torch.Generator().manual_seed(seed)
    gru = torch.nn.GRUCell(WIDTH, FEATURES)
    with torch.no_grad():
        for weight in gru.parameters():
            weight.uniform_(-0.4, 0.4, generator=generator)
    x, start = torch.randn(UPDATES, BATCH, WIDTH, generator=generator), torch.zeros(BATCH, FEATURES)
    head = torch.randn(FEATURES, 2, generator=generator)
    gru, x, start, head = gru.to(dtype), x.to(dtype), start.to(dtype), head.to(dtype)

    def loss(z, inputs, x, step):
        logits = z @ head + torch.tensor([sure, 0.0]).to(z)
        return F.cross_entropy(logits, torch.zeros(len(z), dtype=torch.int64), reduction="none")

    return gru, x, start, loss


def gradient(estimator, gru, x, start, loss, mixed=False):
    def update(z, x):
        return gru(x, z) + (0.3 * z.mean(0, keepdim=True) if mixed else 0)

    cell = Stationary(update, parameters=gru)
    rollout = estimator(cell, start, None, len(x), xs=x, readout=loss, save="sum")
    return torch.cat([it.flatten() for it in torch.autograd.grad(rollout.outputs.mean(), list(gru.parameters()))])


@pytest.mark.parametrize("sure", [8.0, 10.0, 12.0])
@pytest.mark.parametrize("name", ONLINE)
@pytest.mark.one_in(3)
def test_a_loss_near_zero_is_no_reason_to_refuse(name, sure):
    for seed in range(4):
        found = gradient(ONLINE[name], *problem(seed, sure))
        assert found.isfinite().all()
        if name == "rtrl":  # as far as float32 knows it: 1 - p has an error of half a unit in the last place of 1
            exact = gradient(BPTT(), *problem(seed, sure, torch.float64))
            assert (found - exact).norm() <= 3 * 2**-24 * torch.tensor(sure).exp() * exact.norm()


@pytest.mark.parametrize("name", ["rtrl", "snap"])
def test_samples_that_see_each_other_are_found_out_all_the_same(name):
    with pytest.raises(RuntimeError, match="samples see"):
        gradient(ONLINE[name], *problem(0, 12.0), mixed=True)
