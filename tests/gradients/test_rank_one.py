"""The mean of unbiased online recurrent optimisation over many draws, and its noise beside that of a witness."""

import math

import pytest
import torch
from online_cases import by_hand, problem, sources_of, weighed
from torch import nn

from loopgrad.gradients import BPTT, KFRTRL, UORO, Stationary

DRAWS = 20_000


class WeightsOfSamples(nn.Module):
    """A tanh RNN whose samples have weights of their own, given as inputs, so that each is a draw with a gradient."""

    def forward(self, state, inputs, step):
        weights, x = inputs
        return torch.tanh(torch.einsum("bij,bj->bi", weights, state) + x)


def drawn(estimator, num_steps, save):
    """Return (draws, numbers), the gradients by weights and z_0 of equal samples."""
    torch.manual_seed(0)
    weights, state = 0.6 * torch.randn(1, 3, 3).double(), torch.randn(1, 3).double()
    weights, state = (t.expand(DRAWS, *t.shape[1:]).clone().requires_grad_() for t in (weights, state))
    xs = torch.randn(num_steps, 1, 3).double().expand(-1, DRAWS, -1)
    given = {"xs": xs, "readout": lambda z, i, x, step: (z * (step + 1)).sin().sum(1), "save": save}
    rollout = estimator(WeightsOfSamples(), state, weights, num_steps, **given)
    loss = rollout.outputs.sum() + rollout.state.square().sum()
    return torch.cat([g.flatten(1) for g in torch.autograd.grad(loss, [weights, state])], 1)


@pytest.mark.parametrize("num_steps", [1, 6])
@pytest.mark.parametrize("save", ["sum", "last"])
def test_the_mean_is_the_exact_gradient_within_its_standard_error(num_steps, save):
    found, exact = drawn(UORO(seed=1), num_steps, save), drawn(BPTT(), num_steps, save)[0]
    error = found.std(0) / math.sqrt(DRAWS)
    assert ((found.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all()
    assert error.norm() < 0.1 * exact.norm()
    assert found.std(0).norm() > 0.1 * exact.norm(), "the samples share their noise, or there is none"


@pytest.mark.parametrize("estimator", [UORO(seed=0), KFRTRL(seed=0)], ids=["UORO", "KFRTRL"])
def test_the_parameters_of_a_readout_have_their_exact_gradient(estimator):
    cell, readout, state, xs = problem("gru")
    rollout = estimator(cell, state, None, len(xs), xs=xs, readout=readout, save="sum")
    found = torch.autograd.grad(rollout.outputs.sum(), list(readout.parameters()))
    expected = torch.autograd.grad(by_hand(cell, readout, state, xs)[1].sum(), list(readout.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_draws_differ_and_a_seed_repeats_them():
    given = problem("gru")
    cell, _, state, xs = given

    def flat(estimator):
        loss = weighed(estimator(cell, state, None, len(xs), xs=xs).state, torch.zeros(3).double())
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, sources_of(*given), allow_unused=True) if g is not None]
        )

    one, two = UORO(seed=3), UORO(seed=3)
    first, second = flat(one), flat(one)
    assert torch.equal(first, flat(two)) and torch.equal(second, flat(two))
    assert not torch.allclose(first, second)
    with pytest.raises(ValueError, match="seed=-1"):
        UORO(seed=-1)


def test_saves_two_vectors_for_each_sample():
    cell, _, state, xs = problem("gru")
    node = UORO(seed=0)(cell, state.detach(), None, len(xs), xs=xs.detach()).state.grad_fn
    assert [tuple(t.shape) for t in node.saved_tensors] == [(3, 5), (3, sum(p.numel() for p in cell.parameters()))]


def test_one_rank_serves_a_batch_whose_samples_see_each_other():
    """The mean over draws of a map of one number, which is exact at its only update."""
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    cell = Stationary(lambda z, x: w * z.mean(0, keepdim=True).expand_as(z), parameters=[w])
    state = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    found = [
        float(torch.autograd.grad(UORO(seed=seed, scope="batch")(cell, state, None, 1).state.sum(), w)[0])
        for seed in range(12)
    ]
    # nu nu^T of two signs that agree or do not: 2 nu . (1.5, 1.5), that is 0 or twice the exact 3
    assert set(map(round, found)) == {0, 6}
