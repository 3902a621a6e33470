"""The gradient of ReversibleBPTT is BPTT's to the bit in whatever order the numbers of the state lie in memory."""

import pytest
import torch
from reversible_cases import COUPLINGS, every_coupling
from torch import nn

from loopgrad.gradients import BPTT, ReversibleBPTT, Stationary
from loopgrad.models import Leapfrog, Momentum

STARTS = {
    "transposed": lambda: torch.randn(8, 4).T,
    "every second": lambda: torch.randn(4, 16)[:, ::2],
    "expanded": lambda: torch.randn(1, 8).expand(4, 8),
    "expanded columns": lambda: torch.randn(4, 1, dtype=torch.float64).expand(4, 8),
}


def agree(cell, start, inputs, num_steps=6):
    start = start.detach().requires_grad_()
    found = []
    for estimator in (BPTT(), ReversibleBPTT()):
        state = estimator(cell, start, inputs, num_steps).state
        sources = [start, inputs, *cell.parameters()]
        found.append([state, *torch.autograd.grad(state.square().sum(), sources, allow_unused=True)])
    return all(a is None if b is None else torch.equal(a, b) for a, b in zip(*found, strict=True))


@every_coupling
@pytest.mark.parametrize("name", STARTS)
def test_the_layout_of_the_first_state_makes_no_difference(coupling, name):
    torch.manual_seed(0)
    linear, x = nn.Linear(8, 8), torch.randn(4, 8, requires_grad=True)
    cell = COUPLINGS[coupling](Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear))
    assert agree(cell, STARTS[name](), x)


class Turning(nn.Module):
    """Returns its state in another layout at every second update."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, state, inputs, step):
        image = torch.tanh(self.linear(state) + inputs)
        return image.T.contiguous().T if step % 2 else image


@every_coupling
def test_nor_does_the_layout_in_which_updates_return_it(coupling):
    torch.manual_seed(1)
    assert agree(COUPLINGS[coupling](Turning()), torch.randn(4, 8), torch.randn(4, 8, requires_grad=True), 7)


@pytest.mark.parametrize("kind", [Leapfrog, Momentum])
@pytest.mark.parametrize("arithmetic", ["exact", "float64"])
def test_images_with_channels_last(kind, arithmetic):
    torch.manual_seed(2)
    conv = nn.Conv2d(3, 3, 3, padding=1).to(memory_format=torch.channels_last)
    cell = kind(Stationary(lambda z, x: torch.tanh(conv(z) + x), parameters=conv), arithmetic=arithmetic)
    start = torch.randn(2, 3, 5, 5)
    inputs = torch.randn(2, 3, 5, 5, requires_grad=True)
    if arithmetic == "exact":
        assert agree(cell, start, inputs) and agree(cell, start.to(memory_format=torch.channels_last), inputs)
    ReversibleBPTT()(cell, start, inputs, 6).state.sum().backward()
