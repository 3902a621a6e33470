"""Samples of different lengths in one batch: each is as it would be alone."""

import pytest
import torch
from torch import nn

from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    ForwardMode,
    ImplicitGradient,
    PhantomGradient,
    ReversibleBPTT,
    Stationary,
    TorchDEQ,
    TruncatedBPTT,
)
from loopgrad.models import Damped, Leapfrog

STEPS, SIZE = 9, 4
LENGTHS = [4, 9, 1, 7]
COUPLINGS = {
    "plain": lambda cell: cell,
    "damped": lambda cell: Damped(cell, "1/4"),
    "leapfrog": lambda cell: Leapfrog(cell, 0.1, arithmetic="float64"),
}
CASES = [
    (name, e) for name in COUPLINGS for e in (BPTT(), CheckpointedBPTT(), ReversibleBPTT(), ReversibleBPTT(anchors=4))
]
CASES = [(name, e) for name, e in CASES if name != "plain" or not isinstance(e, ReversibleBPTT)]


class Model:
    def __init__(self, couple):
        torch.manual_seed(0)
        self.gru, self.head, self.encoder = nn.GRUCell(SIZE, SIZE), nn.Linear(SIZE, 5), nn.Linear(2, SIZE)
        for module in (self.gru, self.head, self.encoder):
            module.double()
        self.cell = COUPLINGS[couple](Stationary(lambda z, x: self.gru(x, z), parameters=self.gru))
        self.raw = torch.randn(STEPS, len(LENGTHS), 2, dtype=torch.float64)
        # on the grid of the exact arithmetic, so that a sample of no updates is handed back as it is
        self.first = (torch.randn(len(LENGTHS), SIZE) * 64).round().div(64).double().requires_grad_()
        self.sources = [*self.gru.parameters(), *self.head.parameters(), *self.encoder.parameters(), self.first]

    def run(self, estimator, rows, steps, **given):
        readout = lambda z, inputs, x, step: self.head(z).logsumexp(1) + x.sum(1) * step  # noqa: E731
        xs = self.encoder(self.raw)[:steps, rows]
        rollout = estimator(self.cell, self.first[rows], None, steps, xs=xs, readout=readout, **given)
        return rollout.state, rollout.outputs, rollout.stats


@pytest.mark.parametrize(("couple", "estimator"), CASES, ids=str)
@pytest.mark.parametrize("lengths", [LENGTHS, [0, 3, 3, 2]], ids=str)
def test_each_sample_is_as_it_would_be_alone(couple, estimator, lengths):
    model = Model(couple)
    state, outputs, stats = model.run(estimator, slice(None), STEPS, save="sum", lengths=torch.tensor(lengths))
    got = torch.autograd.grad(outputs.sum() + state.square().sum(), model.sources)
    alone, losses = [], []
    for i, length in enumerate(lengths):
        z, loss, _ = (
            model.run(BPTT(), slice(i, i + 1), length, save="sum") if length else (model.first[i : i + 1], 0, 0)
        )
        alone.append(z)
        losses.append(loss if isinstance(loss, torch.Tensor) else torch.zeros(1, dtype=torch.float64))
    expected = torch.autograd.grad(torch.cat(losses).sum() + torch.cat(alone).square().sum(), model.sources)
    torch.testing.assert_close(state, torch.cat(alone), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(outputs, torch.cat(losses), rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert stats.vjps == max(lengths), "a batch costs as many updates as its longest sample"


def test_rows_that_are_done_keep_their_state_to_the_last_bit():
    model = Model("plain")
    at_four = model.run(BPTT(), slice(None), 4)[0]
    state = model.run(BPTT(), slice(None), STEPS, lengths=LENGTHS)[0]
    assert torch.equal(state[0], at_four[0]) and not torch.equal(state[1], at_four[1])


@pytest.mark.parametrize("estimator", [TruncatedBPTT(3), ForwardMode(parameters=["modules_closed_over.0.bias_hh"])])
def test_other_estimators_stop_rows_as_well(estimator):
    model = Model("plain")
    state, outputs, _ = model.run(estimator, slice(None), STEPS, save="all", lengths=LENGTHS)
    whole, every, _ = model.run(BPTT(), slice(None), STEPS, save="all", lengths=LENGTHS)
    assert torch.equal(state, whole) and torch.equal(outputs, every)
    done = torch.arange(STEPS)[:, None] >= torch.tensor(LENGTHS)
    assert (outputs[done] == 0).all() and (outputs[~done] != 0).all()


def test_the_answer_to_the_last_state_is_that_to_each_samples_own_last_input_and_step():
    model = Model("plain")
    outputs = model.run(BPTT(), slice(None), STEPS, lengths=LENGTHS)[1]
    ends = torch.tensor(LENGTHS) - 1
    x = model.encoder(model.raw)[ends, torch.arange(len(LENGTHS))]
    state = model.run(BPTT(), slice(None), STEPS, lengths=LENGTHS)[0]
    expected = model.head(state).logsumexp(1) + x.sum(1) * ends
    assert torch.equal(outputs, torch.where(ends < 0, 0, expected)), "zero where there is no update"


@pytest.mark.parametrize(
    "estimator", [ImplicitGradient(), PhantomGradient(), TorchDEQ()], ids=lambda e: type(e).__name__
)
def test_what_differentiates_the_last_cycle_refuses_samples_that_stand_still_in_it(estimator):
    model = Model("plain")
    with pytest.raises(ValueError, match=f"{type(estimator).__name__} takes the last cycle.*leave lengths out"):
        model.run(estimator, slice(None), STEPS, lengths=LENGTHS)


def test_a_readout_without_samples_is_refused():
    model = Model("plain")
    with pytest.raises(ValueError, match="one answer per sample"):
        BPTT()(model.cell, model.first, None, 4, xs=model.raw[:4, :, :1].expand(-1, -1, SIZE), save="sum",
               readout=lambda z, *_: z.sum(), lengths=LENGTHS[:1] + [1, 1, 1])  # fmt: skip


@pytest.mark.parametrize(
    "estimator", [BPTT(), CheckpointedBPTT(), ForwardMode(parameters=["modules_closed_over.0.bias_hh"])]
)
@pytest.mark.parametrize("save", ["all", [1, 8], 3])
def test_what_is_kept_does_not_depend_on_how_long_the_longest_sample_is(estimator, save):
    model = Model("plain")
    short, found, stats = model.run(estimator, slice(None), STEPS, save=save, lengths=[2, 1, 0, 2])
    _, whole, _ = model.run(BPTT(), slice(None), 2, save="all", lengths=[2, 1, 0, 2])
    kept = {"all": range(STEPS), 3: [2, 5, 8]}.get(save if isinstance(save, str | int) else "", save)
    expected = torch.stack([whole[t] if t < 2 else torch.zeros_like(whole[0]) for t in kept])
    assert torch.equal(found, expected)
    assert stats.cell_evaluations < STEPS
    if found.requires_grad and expected.requires_grad:
        got, wanted = (torch.autograd.grad(it.sum(), model.gru.bias_hh, retain_graph=True) for it in (found, expected))
        torch.testing.assert_close(got[0], wanted[0], rtol=1e-12, atol=1e-12)
