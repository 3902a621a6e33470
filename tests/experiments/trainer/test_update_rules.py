"""Optimisers against the published equations, written out in float64 number by number."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from loopgrad.experiments.trainer import AdamATan2, Keys, MuonRule, SparseSignSGD, Weight

STEPS = 6


def gradients(*shape: int) -> list[torch.Tensor]:
    """A gradient for each step, of sizes from 1e-12 to 1e3, with zeros."""
    generator = torch.Generator().manual_seed(5)
    scale = 10.0 ** torch.linspace(-12, 3, math.prod(shape), dtype=torch.float64).view(shape)
    found = [torch.randn(shape, generator=generator, dtype=torch.float64) * scale for _ in range(STEPS)]
    found[0].view(-1)[0] = 0.0
    return found


def adam_atan2(w: float, slopes: list[float], rates: list[float], beta1: float, beta2: float, decay: float) -> float:
    """One weight under the update of the code behind HRM and TRM."""
    m = v = 0.0
    for t, (g, rate) in enumerate(zip(slopes, rates, strict=True), start=1):
        w = w * (1 - rate * decay)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        w -= rate / (1 - beta1**t) * math.atan2(m, math.sqrt(v) / math.sqrt(1 - beta2**t))
    return w


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.95), (0.0, 0.0)], ids=["published", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_adam_atan2_is_the_published_update(dtype, beta1, beta2):
    slopes, rates = gradients(3, 5), [0.01 * (t + 1) for t in range(STEPS)]
    start = torch.linspace(-2, 2, 15, dtype=torch.float64).view(3, 5)
    w = nn.Parameter(start.clone().to(dtype))
    optimizer = AdamATan2([w], lr=0.0, betas=(beta1, beta2), weight_decay=0.5)
    for slope, rate in zip(slopes, rates, strict=True):
        optimizer.param_groups[0]["lr"], w.grad = rate, slope.to(dtype)
        optimizer.step()
    given = [[g.to(dtype).double().view(-1)[i].item() for g in slopes] for i in range(15)]
    wanted = [adam_atan2(x, g, rates, beta1, beta2, 0.5) for x, g in zip(start.view(-1).tolist(), given, strict=True)]
    # float32 squares 1e-12 to a number it still holds, and rounds six steps
    assert w.view(-1).tolist() == pytest.approx(wanted, rel=1e-12 if dtype == torch.float64 else 3e-6)


def test_adam_atan2_does_not_see_the_scale_of_the_loss():
    ends = []
    for scale in (1.0, 2.0**40):
        w = nn.Parameter(torch.ones(4))
        optimizer = AdamATan2([w], lr=0.1)
        for slope in gradients(4):
            w.grad = slope.float() * scale
            optimizer.step()
        ends.append(w.detach().clone())
    assert torch.allclose(*ends, rtol=1e-6)


def test_rows_that_were_read_are_updated_and_no_others():
    """Duplicated ids sum before the sign; a row whose samples cancel, or have no gradient, is decayed alone."""
    generator, rate, decay = torch.Generator().manual_seed(3), 0.1, 0.7
    table = nn.Parameter(torch.randn(12, 4, generator=generator, dtype=torch.float64))
    optimizer = SparseSignSGD([table], rate, decay)
    wanted = table.tolist()
    for _ in range(STEPS):
        ids = torch.randint(0, 9, (7,), generator=generator)
        weights = torch.randn(7, 4, generator=generator, dtype=torch.float64)
        weights[ids == ids[0]] = 0.0
        optimizer.zero_grad()
        (F.embedding(ids, table, sparse=True) * weights).sum().backward()
        optimizer.step()
        for row in set(ids.tolist()):
            sums = [
                math.fsum(w[k] for i, w in zip(ids.tolist(), weights.tolist(), strict=True) if i == row)
                for k in range(4)
            ]
            wanted[row] = [
                (1 - rate * decay) * x - rate * ((s > 0) - (s < 0)) for x, s in zip(wanted[row], sums, strict=True)
            ]
    assert torch.allclose(table, torch.tensor(wanted, dtype=torch.float64), rtol=1e-14, atol=0)


def test_a_dense_gradient_of_the_table_is_refused_with_the_remedy():
    table = nn.Parameter(torch.zeros(3, 2))
    table.grad = torch.ones(3, 2)
    with pytest.raises(TypeError, match="sparse=True"):
        SparseSignSGD([table], 0.1).step()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: AdamATan2(p, lr=-1.0),
        lambda p: AdamATan2(p, betas=(1.0, 0.5)),
        lambda p: SparseSignSGD(p, 0.1, -1.0),
        lambda p: SparseSignSGD(p, float("nan")),
    ],
    ids=["lr", "betas", "decay", "nan"],
)
def test_what_is_out_of_range_is_refused(make):
    with pytest.raises(ValueError, match="at least 0|in \\[0, 1\\)"):
        make([nn.Parameter(torch.zeros(1))])


def newton_schulz(u: torch.Tensor) -> torch.Tensor:
    """Five steps with the published coefficients, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    turned = u.mT if u.shape[0] > u.shape[1] else u
    x = turned / max(turned.norm(), 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if u.shape[0] > u.shape[1] else x


@pytest.mark.parametrize("scale", ["rms", "spectral"])
@pytest.mark.parametrize("shape", [(24, 8), (8, 24)], ids=["tall", "wide"])
def test_muon_is_the_published_update_to_the_rounding_of_its_newton_schulz(shape, scale):
    generator, rate, decay, mu = torch.Generator().manual_seed(1), 0.02, 0.1, 0.95
    w = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
    (part,) = MuonRule(scale=scale).parts([Weight(w, hidden=True)], Keys(rate, (0.9, 0.95), decay))
    start, wanted, b = w.detach().clone(), w.detach().clone(), torch.zeros(shape, dtype=torch.float64)
    length = {"rms": 0.2 * max(shape) ** 0.5, "spectral": max(1.0, shape[0] / shape[1]) ** 0.5}[scale]
    for _ in range(STEPS):
        w.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        b = mu * b + (1 - mu) * w.grad
        wanted = (1 - rate * decay) * wanted - rate * length * newton_schulz((1 - mu) * w.grad + mu * b)
        part.optimizer.step()
    # bfloat16 has 8 bits: 0.4 % for each number of a product
    assert (w - wanted).norm() < 0.01 * (wanted - start).norm()
