"""Readouts that draw random numbers, or change a buffer, at updates that backward runs again: as they did before."""

import pytest
import torch
from torch import nn

from loopgrad.gradients import BPTT, CheckpointedBPTT, ReversibleBPTT, TruncatedBPTT
from loopgrad.models import Leapfrog

STEPS = 11
BOTH = ("state", "outputs")
AGAIN = {
    "sqrt": CheckpointedBPTT(),
    "binomial0": CheckpointedBPTT("binomial", num_snapshots=0),
    "binomial2": CheckpointedBPTT("binomial", num_snapshots=2),
    "budget": CheckpointedBPTT(memory_budget="14KiB"),
}


class Noisy(nn.Module):
    """z -> tanh(A z + x) + noise of a scale."""

    def __init__(self, scale):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.scale = nn.Linear(3, 3).double(), scale

    def forward(self, state, inputs, step):
        image = torch.tanh(self.linear(state) + inputs)
        return image + self.scale * torch.randn_like(image) if self.scale else image


class Readout(nn.Module):
    """A linear readout of which a random half is dropped, or that is multiplied with how often it has been asked."""

    def __init__(self, dropped):
        super().__init__()
        torch.manual_seed(1)
        self.linear, self.dropped = nn.Linear(3, 2).double(), dropped
        self.register_buffer("asked", torch.zeros((), dtype=torch.float64))

    def forward(self, state, inputs, x, step):
        answer = self.linear(state)
        if self.dropped:
            return nn.functional.dropout(answer, 0.5)
        self.asked = self.asked + 1
        return answer * self.asked


def problem(width=3):
    generator = torch.Generator().manual_seed(2)
    state, inputs = (torch.randn(4, width, generator=generator).double() for _ in range(2))
    torch.manual_seed(3)
    return state, inputs.requires_grad_()


def loss_of(state, outputs, of):
    parts = {"state": state, "outputs": outputs}
    return sum(parts[name].square().sum() for name in of)


def gradients(estimator, cell, readout, save, of=BOTH, **more):
    state, inputs = problem()
    rollout = estimator(cell, state, inputs, STEPS, readout=readout, save=save, **more)
    sources = [inputs, *cell.parameters(), *readout.parameters()]
    found = torch.autograd.grad(loss_of(rollout.state, rollout.outputs, of), sources, allow_unused=True)
    return [rollout.outputs.detach(), *found]


@pytest.mark.parametrize(
    "save, of", [("all", BOTH), ("sum", BOTH), (3, ["outputs"]), ("all", ["state"])], ids=["all", "sum", "3", "unused"]
)
@pytest.mark.parametrize("scale", [0.0, 0.1])
@pytest.mark.parametrize("dropped", [True, False], ids=["dropout", "buffer"])
@pytest.mark.parametrize("name", AGAIN)
def test_updates_that_are_run_again_meet_the_same_draws(name, dropped, scale, save, of):
    wanted = gradients(BPTT(), Noisy(scale), Readout(dropped), save, of)
    found = gradients(AGAIN[name], Noisy(scale), Readout(dropped), save, of)
    for here, there in zip(found, wanted, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-12, atol=1e-12)


def by_hand(cell, readout, every, length):
    """TBPTT(every, length) of the squares of all answers: windows that start from generator, buffers and state."""
    state, inputs = problem()
    sources = [inputs, *cell.parameters(), *readout.parameters()]
    totals, before = [torch.zeros_like(source) for source in sources], []
    for step in range(STEPS):
        before.append((state, torch.get_rng_state(), readout.asked.clone()))
        with torch.no_grad():
            state = cell(state, inputs, step)
            readout(state, inputs, None, step)
    for end in [*range(every, STEPS, every), STEPS]:
        first, since = max(0, end - length), (end - 1) // every * every
        state, generator, asked = before[first]
        torch.set_rng_state(generator)
        readout.asked, loss = asked, 0.0
        for step in range(first, end):
            state = cell(state, inputs, step)
            answer = readout(state, inputs, None, step)
            loss = loss + (answer.square().sum() if step >= since else 0.0)
        found = torch.autograd.grad(loss, sources)
        totals = [total + grad for total, grad in zip(totals, found, strict=True)]
    return totals


@pytest.mark.parametrize("every, length", [(2, 4), (1, 5), (3, 3), (4, 7)])
@pytest.mark.parametrize("scale", [0.0, 0.1])
@pytest.mark.parametrize("dropped", [True, False], ids=["dropout", "buffer"])
def test_windows_that_overlap_meet_the_same_draws(dropped, scale, every, length):
    wanted = by_hand(Noisy(scale), Readout(dropped), every, length)
    estimator = TruncatedBPTT(num_steps=length, every=every)
    _, *found = gradients(estimator, Noisy(scale), Readout(dropped), "all", ["outputs"])
    for here, there in zip(found, wanted, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 0.1])
@pytest.mark.parametrize("save", ["all", "sum", 3], ids=str)
@pytest.mark.parametrize("name", ["sqrt", "binomial2", "reversible"])
def test_a_coupling_with_such_a_readout(name, save, scale):
    estimator = {**AGAIN, "reversible": ReversibleBPTT()}[name]
    wanted = gradients(BPTT(), Leapfrog(Noisy(scale), scale=0.125), Readout(True), save)
    found = gradients(estimator, Leapfrog(Noisy(scale), scale=0.125), Readout(True), save)
    for here, there in zip(found, wanted, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dropped", [True, False], ids=["dropout", "buffer"])
@pytest.mark.parametrize("name", AGAIN)
def test_samples_of_different_lengths_with_such_a_readout(name, dropped):
    lengths = torch.tensor([2, 0, 11, 7])
    wanted = gradients(BPTT(), Noisy(0.1), Readout(dropped), "all", lengths=lengths)
    found = gradients(AGAIN[name], Noisy(0.1), Readout(dropped), "all", lengths=lengths)
    for here, there in zip(found, wanted, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-12, atol=1e-12)
