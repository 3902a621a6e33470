"""Low-rank evolution strategies: equal to dense perturbations of the same draws, and to the law of their mean."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from loopgrad.analysis.counters import PeakBytes
from loopgrad.gradients import BPTT, LowRankES
from loopgrad.gradients.carried_products import Factors
from loopgrad.gradients.low_rank_pass import LowRankPass


class Cell(nn.Module):
    """Matrices in nn.Linear, with and without bias; one that is read transposed too, a norm, an embedding."""

    def __init__(self, size=6, dtype=torch.float64):
        super().__init__()
        self.up, self.down = nn.Linear(size, 2 * size, dtype=dtype), nn.Linear(2 * size, size, bias=False, dtype=dtype)
        self.tied = nn.Linear(size, size, bias=False, dtype=dtype)
        self.norm = nn.Parameter(torch.ones(size, dtype=dtype))
        self.table = nn.Embedding(3, size, dtype=dtype)

    def forward(self, state, inputs, step):
        token = self.table(torch.full((len(state),), step % 3))
        hidden = torch.tanh(self.up(state + inputs + 0.1 * token))
        return self.norm * torch.tanh(self.down(hidden) + F.linear(self.tied(state), self.tied.weight.t()))


def problem(size=6, batch=4, dtype=torch.float64):
    torch.manual_seed(0)
    cell, generator = Cell(size, dtype), torch.Generator().manual_seed(1)
    z, x = (torch.randn(batch, size, dtype=dtype, generator=generator).requires_grad_() for _ in range(2))
    weight = torch.randn(batch, size, dtype=dtype, generator=generator)
    return cell, z, x, weight


def gradient(estimator, cell, z, x, weight, num_steps=5):
    sources = [z, x, *cell.parameters()]
    last = estimator(cell, z, x, num_steps).state
    return torch.autograd.grad((last * weight).sum(), sources)


def dense(estimator, cell, z, x, weight, monkeypatch, num_steps=5):
    """The estimate by a hand-written loop, every perturbation formed: theta + sigma E in the module itself."""
    drawn, draw = [], LowRankPass.drawn

    def keep(self, k, sources, chosen):
        drawn.append(draw(self, k, sources, chosen))
        return drawn[-1]

    with monkeypatch.context() as patch:
        patch.setattr(LowRankPass, "drawn", keep)
        found = gradient(estimator, cell, z, x, weight, num_steps)
    population = drawn[: estimator.population]
    names, sources = [name for name, _ in cell.named_parameters()], [z, x, *cell.parameters()]
    expected = [torch.zeros_like(source) for source in sources]

    def run(perturbation, sigma):
        moved = [s.detach() + sigma * e for s, e in zip(sources, perturbation, strict=True)]
        state, weights = moved[0], dict(zip(names, moved[2:], strict=True))
        for step in range(num_steps):
            state = torch.func.functional_call(cell, weights, (state, moved[1], step))
        return state.detach()

    for each in population:
        formed = [it.a @ it.b.T if isinstance(it, Factors) else it for it in each]
        if estimator.antithetic:
            u = (run(formed, estimator.sigma) - run(formed, -estimator.sigma)) / (2 * estimator.sigma)
        else:
            u = (run(formed, estimator.sigma) - run(formed, 0)) / estimator.sigma
        per_sample = (u * weight).sum(1)
        for total, e, i in zip(expected, formed, range(len(sources)), strict=True):
            total += e * (per_sample[:, None] if i < 2 else per_sample.sum()) / estimator.population
    return found, expected, population[0]


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("rank", [1, 3])
def test_it_equals_dense_perturbations_of_the_same_draws(rank, antithetic, monkeypatch):
    estimator = LowRankES(rank, population=3, antithetic=antithetic, seed=0)
    found, expected, first = dense(estimator, *problem(), monkeypatch)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9 * float(b.abs().max()))
    low = [isinstance(it, Factors) for it in first]
    #                z_0    inputs  norm   up    bias   down  tied   table
    assert low == [False, False, False, True, False, True, False, False]
    assert {tuple(it.b.shape) for it in first if isinstance(it, Factors)} == {(6, rank), (12, rank)}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 4])
def test_the_mean_is_the_gradient(rank):
    """||mean - g|| < 3 sqrt(C / N) ||g|| with C of these draws, sigma so small that smoothing moves g by less."""
    given, draws = problem(size=3, batch=3), 500
    exact = torch.cat([g.flatten() for g in gradient(BPTT(), *given)])
    estimator = LowRankES(rank, population=8, sigma=1e-4, seed=1)
    found = torch.stack([torch.cat([g.flatten() for g in gradient(estimator, *given)]) for _ in range(draws)])
    variance = (found - exact).square().sum(1).mean()
    bound = 3 * (variance / draws).sqrt()
    assert (found.mean(0) - exact).norm() < bound < exact.norm()


def test_the_smoothed_loss_has_the_gradient_in_closed_form():
    """Of z -> z w^3 with normal noise on w the smoothed derivative is 3 (w^2 + sigma^2); differences have its mean."""

    class Cube(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))

        def forward(self, state, inputs, step):
            return state * self.w**3

    cell, z, sigma = Cube(), torch.ones(1, 1, dtype=torch.float64), 0.5
    estimator = LowRankES(population=1500, sigma=sigma, seed=0)
    (found,) = torch.autograd.grad(estimator(cell, z, None, 1).state.sum(), [cell.w])
    # terms 3 w^2 e^2 + sigma^2 e^4 of a normal e: mean 3 w^2 + 3 sigma^2; variance by E e^4 = 3, e^6 = 15, e^8 = 105
    mean = 3 * (0.25 + sigma**2)
    variance = 9 * 0.0625 * 3 + 6 * 0.25 * sigma**2 * 15 + sigma**4 * 105 - mean**2
    assert abs(float(found) - mean) < 3 * (variance / 1500) ** 0.5 < 0.3 * mean


def test_draws_differ_from_call_to_call_and_repeat_with_the_seed():
    given = problem()
    first, second = ([gradient(it, *given)[2] for _ in range(2)] for it in (LowRankES(seed=3), LowRankES(seed=3)))
    assert not torch.equal(*first) and all(map(torch.equal, first, second))


def test_forward_values_are_those_of_bptt_and_memory_does_not_grow_with_the_updates():
    cell, z, x, _ = problem()
    for num_steps in (0, 1, 7):
        assert torch.equal(LowRankES(seed=0)(cell, z, x, num_steps).state, BPTT()(cell, z, x, num_steps).state)
    peaks = []
    for num_steps in (4, 64):
        cell, z, x, weight = problem(size=32, batch=16)
        with PeakBytes() as live:
            gradient(LowRankES(population=2, seed=0), cell, z, x, weight, num_steps)
        peaks.append(live.peak)
    assert peaks[1] <= 1.05 * peaks[0]


def test_no_perturbation_of_a_matrix_is_formed():
    size = 128
    linear = nn.Linear(size, size, bias=False)

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear

        def forward(self, state, inputs, step):
            return torch.tanh(self.linear(state))

    with PeakBytes() as live:
        LowRankES(population=2, seed=0)(Plain(), torch.zeros(2, size), None, 8)
    assert live.peak < size * size * 4 / 2


def test_frozen_weights_stay_and_their_matrix_is_not_moved():
    cell, z, x, weight = problem()
    cell.up.weight.requires_grad_(False)
    last = LowRankES(seed=0)(cell, z, x, 3).state
    (last * weight).sum().backward()
    assert cell.up.weight.grad is None and cell.down.weight.grad is not None


def test_stats_count_the_recursions_of_the_population():
    cell, z, x, _ = problem()
    for antithetic, runs in ((True, 11), (False, 6)):
        seen = []
        handle = cell.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        stats = LowRankES(population=5, antithetic=antithetic, seed=0)(cell, z, x, 4).stats
        handle.remove()
        assert (stats.cell_evaluations, stats.vjps) == (4 * runs, 0) and len(seen) == 4 * runs


@pytest.mark.slow
def test_a_loss_at_every_step_has_its_gradient():
    cell, z, x, weight = problem(size=3, batch=2)
    found = []
    for estimator in (LowRankES(population=500, sigma=1e-4, seed=0), BPTT()):
        rollout = estimator(cell, z, x, 2, readout=lambda state, *_: (state * weight).sum(1), save="sum")
        found.append(torch.autograd.grad(rollout.outputs.sum(), [cell.norm])[0])
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.8


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rank": 0}, "LowRankES(rank=0)"),
        ({"population": 0}, "LowRankES(population=0)"),
        ({"chunk": 0}, "LowRankES(chunk=0)"),
        ({"sigma": 0}, "LowRankES(sigma=0)"),
        ({"sigma": float("nan")}, "LowRankES(sigma=nan)"),
        ({"antithetic": 1}, "LowRankES(antithetic=1)"),
        ({"scope": "all"}, "LowRankES(scope='all')"),
        ({"seed": -1}, "LowRankES(seed=-1)"),
    ],
)
def test_what_is_out_of_range_is_named(values, words):
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        LowRankES(**values)


def test_16_bits_and_a_second_derivative_are_refused():
    cell, z, x, weight = problem(dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="LowRankES on torch.bfloat16"):
        gradient(LowRankES(seed=0), cell, z, x, weight)
    cell, z, x, weight = problem()
    last = LowRankES(seed=0)(cell, z, x, 2).state
    with pytest.raises(RuntimeError, match="LowRankES"):
        torch.autograd.grad((last * weight).sum(), [z], create_graph=True)
