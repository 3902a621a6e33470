"""Truncation over answers on the way: TBPTT(k1, k2) and windows of random length, against windows by hand."""

import pytest
import torch
from torch import nn

from loopgrad.gradients import BPTT, RandomTruncation, Stationary, TruncatedBPTT

STEPS, BATCH, SIZE = 37, 3, 4


class Model:
    """A GRU that reads an encoded sequence, with a loss per sample at every step."""

    def __init__(self, steps: int = STEPS):
        torch.manual_seed(0)
        self.gru, self.head, self.encoder = nn.GRUCell(SIZE, SIZE), nn.Linear(SIZE, 5), nn.Linear(2, SIZE)
        for module in (self.gru, self.head, self.encoder):
            module.double()
        self.cell = Stationary(lambda z, x: self.gru(x, z), parameters=self.gru)
        self.raw = torch.randn(steps, BATCH, 2, dtype=torch.float64)
        self.first = torch.randn(BATCH, SIZE, dtype=torch.float64, requires_grad=True)
        self.weights = torch.randn(steps, BATCH, dtype=torch.float64)

    @property
    def sources(self) -> list[torch.Tensor]:
        return [*self.gru.parameters(), *self.head.parameters(), *self.encoder.parameters(), self.first]

    def loss(self, z, inputs, x, step):
        return self.head(z).logsumexp(1) + x.sum(1) * step

    def gradient(self, estimator, save="all"):
        steps = len(self.raw)
        xs, given = self.encoder(self.raw), {"readout": self.loss, "save": save}
        rollout = estimator(self.cell, self.first, None, steps, xs=xs, **given)
        weights = self.weights if save == "all" else self.weights[0]
        loss = (weights * rollout.outputs).sum() + rollout.state.square().sum()
        return self.flat(torch.autograd.grad(loss, self.sources, allow_unused=True)), rollout.stats

    def flat(self, gradients):
        pairs = zip(gradients, self.sources, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def by_hand(model, every, length):
    states = [model.first]
    with torch.no_grad():
        for x in model.encoder(model.raw):
            states.append(model.gru(x, states[-1]))
    total, done = 0.0, 0
    for end in (*range(every, STEPS, every), STEPS):
        z, loss, xs = states[max(0, end - length)], 0.0, model.encoder(model.raw)
        for step in range(max(0, end - length), end):
            z = model.gru(xs[step], z)
            if step >= done:
                loss = loss + (model.weights[step] * model.loss(z, None, xs[step], step)).sum()
        loss = loss + (z.square().sum() if end == STEPS else 0.0)
        total, done = total + model.flat(torch.autograd.grad(loss, model.sources, allow_unused=True)), end
    return total


@pytest.mark.parametrize(("every", "length"), [(1, 16), (16, 16), (8, 32), (5, 3), (1, 1), (37, 37), (50, 40), (36, 1)])
def test_tbptt_equals_windows_by_hand(every, length):
    model = Model()
    got, stats = model.gradient(TruncatedBPTT(length, every=every))
    torch.testing.assert_close(got, by_hand(model, every, length), rtol=1e-12, atol=1e-12)
    again = sum(min(end, length) for end in (*range(every, STEPS, every), STEPS))
    assert stats.vjps == again and stats.cell_evaluations == STEPS + (again if every < STEPS else 0)


def test_by_default_windows_do_not_overlap_and_in_cycles_they_count_cycles():
    model = Model()
    assert torch.equal(model.gradient(TruncatedBPTT(8))[0], model.gradient(TruncatedBPTT(8, every=8))[0])
    model.cell.period = 4  # pyright: ignore[reportArgumentType]
    in_cycles = model.gradient(TruncatedBPTT(num_cycles=2, every=1))[0]
    assert torch.equal(in_cycles, model.gradient(TruncatedBPTT(8, every=4))[0])


def test_a_language_models_gradient_is_that_of_its_windows_and_not_of_its_last_updates():
    model = Model()
    exact = model.gradient(BPTT())[0]
    windows = model.gradient(TruncatedBPTT(16))[0]
    assert torch.cosine_similarity(windows, exact, dim=0) > 0.9
    last = TruncatedBPTT(16)(model.cell, model.first, None, STEPS, xs=model.encoder(model.raw)).state
    assert torch.autograd.grad(last.square().sum(), model.first, allow_unused=True) == (None,)


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["geometric", "poisson", "lognormal"])
def test_the_mean_over_windows_of_random_length_is_the_exact_gradient(distribution):
    # a mean not far below all updates: Poisson's light tail has weights elsewhere that no number of draws meets
    model, count = Model(steps=12), 400
    estimator = RandomTruncation(mean_steps=8, seed=0, distribution=distribution)
    draws = torch.stack([model.gradient(estimator, save="sum")[0] for _ in range(count)])
    exact, error = model.gradient(BPTT(), save="sum")[0], draws.std(0) / count**0.5
    assert ((draws.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all()
    assert error.norm() < 0.1 * exact.norm()
    plain = RandomTruncation(mean_steps=8, seed=0, distribution=distribution, reweight=False)
    biased = torch.stack([model.gradient(plain, save="sum")[0] for _ in range(40)]).mean(0)
    assert (biased - exact).norm() > 5 * error.norm(), "without weights the mean is another, so the test can fail"


def test_a_window_that_holds_all_updates_is_bptt():
    model = Model(steps=6)
    assert torch.equal(
        model.gradient(RandomTruncation(mean_steps=1e6, seed=1, reweight=False))[0], model.gradient(BPTT())[0]
    )


@pytest.mark.parametrize("every", [0, True, 1.5])
def test_every_must_be_a_number_of_updates(every):
    with pytest.raises(ValueError, match=r"TruncatedBPTT\(every="):
        TruncatedBPTT(4, every=every)
