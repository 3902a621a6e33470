"""Bias and variance of random estimators, beside closed forms, and the size of their standard errors."""

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from loopgrad.analysis import (
    bias_and_variance,
    compare_gradients,
    gradients_of,
    minibatch_variance,
    reference_gradients,
)
from loopgrad.gradients import BPTT, Estimator, Rollout, Stats, TruncatedBPTT

P, T = 60, 6


class Cell(nn.Module):
    """z <- d z + tanh(w x), two groups of parameters, 50 and 10 entries, in float64."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(50, generator=generator, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(10, generator=generator, dtype=torch.float64))

    def forward(self, state, inputs, step):
        return torch.linspace(0.2, 0.9, P, dtype=torch.float64) * state + torch.tanh(
            torch.cat([self.a, self.b]) * inputs
        )


def loss(cell, estimator):
    x = torch.linspace(0.5, 1, P, dtype=torch.float64)[None]
    return estimator(cell, 0 * x, x, T).state.square().sum()


def exact(cell):
    return reference_gradients(lambda own: loss(own, BPTT()), cell)


def squared(gradient):
    return sum(g.square().sum().item() for g in gradient.values())


class _Changed(torch.autograd.Function):
    """A state as it is; to the gradient of each parameter goes what `change` makes of the cotangent."""

    @staticmethod
    def forward(ctx, state, change, *parameters):
        ctx.change = change
        return state.view_as(state)

    @staticmethod
    def backward(ctx, cotangent):
        kept, parts = ctx.change(cotangent)
        return kept, None, *parts


@dataclass(frozen=True)
class Random(Estimator):
    generator: torch.Generator | None = None
    kind, memory = "unbiased", "O(T)"

    def uniform(self, *shape):
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)


@dataclass(frozen=True)
class Noisy(Random):
    """The exact gradient, and to each entry a constant and independent noise."""

    sigma: float = 0.0
    offset: float = 0.0

    def rollout(self, cell, state, inputs, num_steps):
        def change(cotangent):
            return cotangent, [self.offset + self.sigma * self.normal(*p.shape) for p in cell.parameters()]

        return Rollout(_Changed.apply(run(cell, state, inputs, num_steps), change, *cell.parameters()), Stats(0, 0))


@dataclass(frozen=True)
class Forward(Random):
    """The forward gradient (g . u) u, u of random signs."""

    def rollout(self, cell, state, inputs, num_steps):
        parameters, end = list(cell.parameters()), run(cell, state, inputs, num_steps)
        u = [2.0 * (self.uniform(*p.shape) < 0.5) - 1 for p in parameters]

        def change(cotangent):
            g = torch.autograd.grad(end, parameters, cotangent)
            product = sum((one * v).sum() for one, v in zip(g, u, strict=True))
            return None, [product * v for v in u]

        return Rollout(_Changed.apply(end.detach(), change, *parameters), Stats(0, 0))


@dataclass(frozen=True)
class Cut(Random):
    """One update, and with a chance all of them; unbiased where the rest is divided by that chance."""

    chance: float = 0.5
    weighed: bool = True

    def rollout(self, cell, state, inputs, num_steps):
        short, whole = (e(cell, state, inputs, num_steps) for e in (TruncatedBPTT(1), BPTT()))
        factor = (self.uniform(()) < self.chance) / (self.chance if self.weighed else 1)
        return Rollout(short.state + factor * (whole.state - short.state), whole.stats)


def run(cell, state, inputs, num_steps):
    for step in range(num_steps):
        state = cell(state, inputs, step)
    return state


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def near(found, expected, deviation):
    assert abs(found - expected) < 4 * deviation, (found, expected, deviation)


def test_gaussian_noise_has_the_variance_and_no_bias():
    k, sigma = 256, 30.0
    found = bias_and_variance(Noisy(sigma=sigma), loss, Cell(), draws=k, groups=lambda name: name)
    size = squared(exact(Cell()))
    for one, p in ((found, P), (found.groups["a"], 50), (found.groups["b"], 10)):
        near(one.variance, p * sigma**2, sigma**2 * math.sqrt(2 * p / k))
        near(one.bias_squared, 0, sigma**2 * math.sqrt(2 * p) / k)
        assert 0.5 < one.bias_error / (sigma**2 * math.sqrt(2 * p) / k) < 2
        assert 0.5 * p < one.dimensions < 2 * p and abs(one.z) < 4 and one.p > 1e-3
    assert found.snr == pytest.approx(size / found.variance) and found.reference_squared == pytest.approx(size)
    near(found.relative_mse, P * sigma**2 / size, sigma**2 * math.sqrt(2 * P / k) / size)


def test_a_bias_is_found_with_its_size():
    offset = 3.0
    found = bias_and_variance(Noisy(sigma=30.0, offset=offset), loss, Cell(), draws=256)
    near(found.bias_squared, P * offset**2, found.bias_error)
    # 4 b S b / K + 2 tr(S^2) / K^2 with b of P equal entries
    expected = math.sqrt(4 * P * offset**2 * 900 / 256 + 2 * P * 900**2 / 256**2)
    assert found.bias_error == pytest.approx(expected, rel=0.4)
    assert found.z > 6 and found.p < 1e-6
    assert found.relative_bias == pytest.approx(math.sqrt(found.bias_squared / found.reference_squared))


@pytest.mark.slow
def test_a_forward_gradient_has_p_minus_1_times_the_square_as_error():
    k = 1024
    found = bias_and_variance(Forward(), loss, Cell(), draws=k, groups=lambda name: name)
    near(found.relative_mse, P - 1, (P - 2) * math.sqrt(2 / k))  # (P - 2) (g . u)^2 + ||g||^2
    assert abs(found.z) < 4 and found.p > 1e-3
    assert found.draws_for(0.9) == pytest.approx((P - 1) * 0.81 / 0.19, rel=0.3)
    # the cosine of one draw is |g . u| / (||g|| sqrt(P)), whose mean square is 1 / P
    assert found.cosine**2 + found.cosine_deviation**2 == pytest.approx(1 / P, rel=0.2)
    assert found.cosine == pytest.approx(math.sqrt(2 / math.pi / P), rel=0.1)
    # in a group of p entries: (p - 1) |g_group|^2 and p times the square of the rest
    inside = squared({"b": exact(Cell())["b"]})
    law = 9 * inside + 10 * (squared(exact(Cell())) - inside)
    assert found.groups["b"].mse == pytest.approx(law, rel=0.2)


def test_random_truncation_is_unbiased_only_where_it_is_weighed():
    cell, k, chance = Cell(), 256, 0.25
    short = gradients_of(lambda own: loss(own, TruncatedBPTT(1)), cell)
    rest = squared({name: short[name] - g for name, g in exact(cell).items()})
    found = bias_and_variance(Cut(chance=chance), loss, cell, draws=k)
    assert abs(found.z) < 6 and found.p > 1e-3 and found.dimensions < 2
    near(found.variance, rest * (1 / chance - 1), rest * (1 / chance - 1) * 2 / math.sqrt(k))
    cut = bias_and_variance(Cut(chance=chance, weighed=False), loss, cell, draws=k)
    assert cut.bias_squared == pytest.approx((1 - chance) ** 2 * rest, rel=0.3) and cut.p < 1e-12
    near(cut.bias_squared, (1 - chance) ** 2 * rest, cut.bias_error)
    assert cut.variance == pytest.approx(chance * (1 - chance) * rest, rel=0.3)


def test_a_deterministic_estimator_has_no_variance_and_all_its_error_is_bias():
    cell = Cell()
    found = bias_and_variance(TruncatedBPTT(2), loss, cell, draws=5)
    gradient = gradients_of(lambda own: loss(own, TruncatedBPTT(2)), cell)
    one = compare_gradients(gradient, exact(cell))
    assert found.variance == 0.0 and found.snr == math.inf and math.isnan(found.z) and math.isnan(found.p)
    assert found.relative_bias == pytest.approx(one.relative_error) and found.bias_squared == found.mse
    assert found.cosine == pytest.approx(one.cosine) and found.cosine_deviation == 0.0
    assert found.draws_for(one.cosine - 0.01) == 1.0 and found.draws_for(one.cosine + 1e-3) == math.inf
    assert bias_and_variance(BPTT(), loss, cell, draws=4).bias_squared == 0.0


@pytest.mark.parametrize("chosen", ["global", "generator", "seed"])
def test_each_draw_is_another_wherever_the_randomness_comes_from(chosen):
    made = {
        "global": Noisy(sigma=1.0),
        "generator": Noisy(torch.Generator().manual_seed(0), sigma=1.0),
        "seed": lambda draw: Noisy(torch.Generator().manual_seed(draw), sigma=1.0),
    }
    found = bias_and_variance(made[chosen], loss, Cell(), draws=64)
    near(found.variance, P, math.sqrt(2 * P / 64))


def test_a_fixed_seed_is_one_draw():
    found = bias_and_variance(lambda draw: Noisy(torch.Generator().manual_seed(7), sigma=1.0), loss, Cell(), draws=8)
    assert found.variance == 0.0


def test_the_module_and_the_generator_are_left_and_a_second_call_repeats_the_first():
    cell, rng = Cell(), torch.get_rng_state()
    cell.register_buffer("calls", torch.zeros(()))
    cell.a.grad = torch.ones_like(cell.a)

    def counting(own, estimator):
        own.calls += 1
        return loss(own, estimator) * own.calls

    first = bias_and_variance(Noisy(sigma=1.0), counting, cell, draws=8)
    assert first == bias_and_variance(Noisy(sigma=1.0), counting, cell, draws=8)
    assert torch.equal(rng, torch.get_rng_state()) and cell.calls == 0 and cell.calls._version == 0
    assert torch.equal(cell.a, Cell().a) and torch.equal(cell.a.grad, torch.ones_like(cell.a)) and cell.b.grad is None


def test_a_reference_of_the_caller_is_used():
    doubled = {name: 2 * g for name, g in exact(Cell()).items()}
    found = bias_and_variance(BPTT(), loss, Cell(), draws=4, reference=doubled)
    assert found.relative_bias == pytest.approx(0.5) and found.cosine == pytest.approx(1)
    with pytest.raises(ValueError, match="the reference lacks"):
        bias_and_variance(BPTT(), loss, Cell(), draws=4, reference={"a": None})


def test_draws_for_a_cosine_follow_from_the_angle_and_the_noise():
    found = bias_and_variance(BPTT(), loss, Cell(), draws=4)
    unbiased = dataclasses.replace(found, reference_squared=2.0, product=2.0, bias_squared=0.0, variance=100.0)
    assert unbiased.draws_for(0.9) == pytest.approx(0.81 * 50 / 0.19) and unbiased.draws_for(0.01) == 1.0
    opposite = bias_and_variance(
        BPTT(), loss, Cell(), draws=4, reference={name: -g for name, g in exact(Cell()).items()}
    )
    assert opposite.cosine == pytest.approx(-1) and opposite.draws_for(0.9) == math.inf


def test_wrong_arguments_are_refused():
    for draws in (3, True, 8.0):
        with pytest.raises(ValueError, match="draws must be an int of at least 4"):
            bias_and_variance(BPTT(), loss, Cell(), draws=draws)
    with pytest.raises(TypeError, match="estimator must be an Estimator or a function"):
        bias_and_variance("bptt", loss, Cell())
    with pytest.raises(TypeError, match=r"estimator\(0\) must return an Estimator, got int"):
        bias_and_variance(lambda draw: draw, loss, Cell())
    with pytest.raises(ValueError, match=r"loss draws random numbers under BPTT.*module.eval\(\)"):
        bias_and_variance(BPTT(), lambda own, e: loss(own, e) * torch.rand(()), Cell())
    with pytest.raises(ValueError, match="cosine must be between 0 and 1"):
        bias_and_variance(BPTT(), loss, Cell(), draws=4).draws_for(1.0)


def test_the_variance_over_mini_batches_is_that_of_their_gradients():
    cell, scales = Cell(), torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    losses = [lambda own, s=s: s * loss(own, BPTT()) for s in scales]
    assert minibatch_variance(losses, cell) == pytest.approx(squared(exact(cell)) * scales.var().item(), rel=1e-12)
    with pytest.raises(ValueError, match="two mini-batches"):
        minibatch_variance(losses[:1], cell)


def test_the_result_is_a_dict_of_plain_numbers():
    numbers = dataclasses.asdict(bias_and_variance(Noisy(sigma=1.0), loss, Cell(), draws=4))
    assert all(type(v) in (int, float) for v in numbers.values() if not isinstance(v, dict))
    assert set(numbers["groups"]) == {"a", "b"}
