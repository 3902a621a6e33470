"""Synthetic gradients against a closed form and full BPTT through all segments."""

import pytest
import torch
from drawn_batches import draw
from torch import nn

from loopgrad.gradients import BPTT, Stationary
from loopgrad.models import FixedSegments, Model, Output, Scored, Synthesiser, run_segment
from loopgrad.models.supervision import Carry

SEGMENTS, UPDATES, SIZE, ROWS = 4, 2, 2, 32


class Affine(Model):
    """z <- A z + b, with the loss z^T Q z / 2 + c^T z of a sample after each segment: all in closed form."""

    num_steps = UPDATES

    def __init__(self, quadratic: bool):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.A = nn.Parameter(torch.tensor([[0.9, -0.5], [0.5, 0.9]], dtype=torch.float64))
        self.b, self.c = (
            nn.Parameter(0.3 * torch.randn(SIZE, generator=generator, dtype=torch.float64)) for _ in range(2)
        )
        root = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
        self.Q = root @ root.T if quadratic else torch.zeros(SIZE, SIZE, dtype=torch.float64)
        self.cell = Stationary(lambda z, _: {"z": z["z"] @ self.A.T + self.b}, parameters=[self.A, self.b])

    def initial_state(self, batch_size, seq_len=None):
        return {"z": torch.zeros(batch_size, 1, SIZE, dtype=torch.float64)}

    def lost(self, z):
        return 0.5 * ((z @ self.Q) * z).sum((1, 2)) + (z @ self.c).sum(1)

    def forward(self, state, inputs, puzzle_ids, estimator):
        rollout = estimator(self.cell, state, None, UPDATES)
        zeros = torch.zeros(len(inputs), dtype=torch.float64)
        return Output(rollout.state, rollout.state["z"], zeros, zeros, rollout.stats)

    def scored(self, state, inputs, puzzle_ids, labels, estimator, cross_entropy, depth=None):
        output = self(state, inputs, puzzle_ids, estimator)
        right = torch.zeros(len(inputs))
        return Scored(output, self.lost(output.state["z"]).mean(), right, right > 0)

    state_size = encode = readout = None


class OfEachSegment(nn.Module):
    """An affine map for each segment: what the true gradient of later segments is, under a quadratic loss."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(SEGMENTS + 1, SIZE, SIZE, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(SEGMENTS + 1, SIZE, dtype=torch.float64))

    def forward(self, state, segment, batch):
        weight, bias = self.weight[segment], self.bias[segment]
        return {"z": torch.einsum("bij,btj->bti", weight, state["z"]) + bias.unsqueeze(1)}


class Forgets(nn.Module):
    """A fault on purpose: says nothing of the state that a segment ends in, so that the target lacks that term."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, state, segment, batch):
        said = self.inner(state, segment, batch)
        return said if torch.is_grad_enabled() else {name: torch.zeros_like(s) for name, s in said.items()}


def start(seed):
    """A carry after the first segment, with states of its own."""
    z = torch.randn(ROWS, 1, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    batch = draw(0, ROWS, 1)
    return Carry({"z": z}, torch.ones(ROWS, dtype=torch.int64), torch.zeros(ROWS, dtype=torch.bool), batch)


def all_segments(model, synthesiser, seed):
    """The loss of the other segments, each with a graph of its own."""
    carry, losses = start(seed), []
    while not carry.halted.all():
        carry, loss, *_ = run_segment(
            model, carry, carry.batch, BPTT(), FixedSegments(SEGMENTS), synthesiser=synthesiser
        )
        losses.append(loss)
    return torch.stack(losses).sum()


def in_one_graph(model, seed):
    """The same loss by a loop of our own that detaches nothing."""
    z, total = start(seed).state["z"], 0
    for _ in range(SEGMENTS - 1):
        for _ in range(UPDATES):
            z = z @ model.A.T + model.b
        total = total + model.lost(z).mean()
    return total


def true_gradients(model):
    """P_n and p_n of the gradient P_n z + p_n of what is lost after segment n, by the recursion backward in time."""
    with torch.no_grad():
        M = torch.linalg.matrix_power(model.A, UPDATES)
        shift = sum(torch.linalg.matrix_power(model.A, k) @ model.b for k in range(UPDATES))
        P, p = [torch.zeros(SIZE, SIZE, dtype=torch.float64)], [torch.zeros(SIZE, dtype=torch.float64)]
        for _ in range(SEGMENTS - 1):
            inner = model.Q + P[0]
            P, p = [M.T @ inner @ M, *P], [M.T @ (inner @ shift + model.c + p[0]), *p]
    return torch.stack(P), torch.stack(p)  # of segments 1 .. SEGMENTS


def fitted(model, synthesiser, steps=400, rate=0.2):
    """The synthesiser after so many plain steps along what `backward` gives it; the model stays."""
    parameters = list(synthesiser.parameters())
    for step in range(steps):
        gradients = torch.autograd.grad(all_segments(model, synthesiser, step), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= rate * gradient
    return synthesiser


def update_error(model, synthesiser):
    """Relative distance of the gradient of all segments from that in one graph."""
    parameters = [model.A, model.b, model.c]
    ours = torch.autograd.grad(all_segments(model, synthesiser, 10_000), parameters)
    exact = torch.autograd.grad(in_one_graph(model, 10_000), parameters)
    ours, exact = (torch.cat([g.flatten() for g in them]) for them in (ours, exact))
    return ((ours - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(
    "quadratic", [pytest.param(False, marks=pytest.mark.slow), True], ids=["linear loss", "quadratic loss"]
)
def test_a_fitted_synthesiser_is_the_true_gradient_and_the_update_is_that_of_all_segments(quadratic):
    model, synthesiser = Affine(quadratic), OfEachSegment()
    assert update_error(model, synthesiser) > 0.1  # what is lost without
    fitted(model, synthesiser)
    P, p = true_gradients(model)
    known = slice(1, SEGMENTS)
    torch.testing.assert_close(synthesiser.weight[known].detach(), P[:-1], rtol=0, atol=1e-6)
    torch.testing.assert_close(synthesiser.bias[known].detach(), p[:-1], rtol=0, atol=1e-6)
    assert update_error(model, synthesiser) < 1e-6


@pytest.mark.slow
def test_the_linear_synthesiser_of_the_package_is_exact_where_the_gradient_depends_on_the_segment_alone():
    model, synthesiser = Affine(quadratic=False), Synthesiser({"z": SIZE}, 6, SEGMENTS).double()
    assert update_error(model, fitted(model, synthesiser, 700, rate=0.12)) < 1e-6


@pytest.mark.slow
def test_a_target_without_the_later_segments_is_not_enough():
    model, synthesiser = Affine(quadratic=True), OfEachSegment()
    fitted(model, Forgets(synthesiser))
    P, _ = true_gradients(model)
    last = SEGMENTS - 1  # after which there is one segment alone: nothing is left out of its target
    torch.testing.assert_close(synthesiser.weight[last].detach(), P[last - 1], rtol=0, atol=1e-6)
    assert (synthesiser.weight[1] - P[0]).norm() > 0.5 * P[0].norm()
    assert update_error(model, synthesiser) > 0.1
