"""Cells with leaves that are not to be coupled: counters, schedules, accumulators, flags, token ids, absent parts."""

import pytest
import torch
from torch import nn

from loopgrad.models import Damped, Leapfrog, Momentum

COUPLINGS = {
    "damped": lambda cell, **more: Damped(cell, "1/4", **more),
    "damped per update": lambda cell, **more: Damped(cell, "4/5", per="update", **more),
    "leapfrog": lambda cell, **more: Leapfrog(cell, 1 / 16, **more),
    "momentum": lambda cell, **more: Momentum(cell, "7/8", **more),
    "float64": lambda cell, **more: Momentum(cell, "7/8", arithmetic="float64", **more),
}
every_coupling = pytest.mark.parametrize("coupling", COUPLINGS)


class Carrying(nn.Module):
    """Coupled: z. Carried: a counter that it reads, a schedule, an accumulator of what it has made, the last z read."""

    uncoupled = ("state['clock']", "state['total']", "state['seen']")

    def __init__(self):
        super().__init__()
        self.linear, self.rate, self.decay = nn.Linear(4, 4), *(nn.Parameter(torch.tensor(v)) for v in (0.3, 0.2))

    def forward(self, state, inputs, step):
        count, schedule = state["clock"]
        z = torch.tanh(self.linear(state["z"]) * schedule + 0.1 * state["seen"] + inputs / (1 + count))
        total = state["total"] + self.rate * z.double().square().sum(-1) if step % 3 else state["total"]
        clock = [count + 1, schedule * (0.9 + 0.1 * torch.sigmoid(self.decay))]
        return {"z": z, "clock": clock, "total": total, "seen": state["z"]}


def carrying(dtype=torch.float32):
    torch.manual_seed(0)
    cell, x = Carrying().to(dtype), torch.randn(3, 4, dtype=dtype)
    clock = [torch.zeros((), dtype=torch.bfloat16), torch.ones((), dtype=dtype).requires_grad_()]
    total = torch.full((3,), 0.5, dtype=torch.float64).requires_grad_()
    z = torch.randn(3, 4, dtype=dtype).requires_grad_()
    return cell, {"z": z, "clock": clock, "total": total, "seen": torch.zeros(3, 4, dtype=dtype).requires_grad_()}, x


def loss_of(state):
    sizes = state["z"].double().sin().sum() + state["total"].square().sum()
    return sizes + state["clock"][1].double() * 3 + state["seen"].double().square().sum()


class Flags(nn.Module):
    """What nobody names: a halting flag, token ids, counters in torch and in Python, a part that is absent at first."""

    def __init__(self):
        super().__init__()
        self.linear, self.embed = nn.Linear(4, 4), nn.Embedding(5, 4)

    def forward(self, state, inputs, step):
        z, halted, tokens, count, calls, seen = state
        new = torch.tanh(self.linear(z) + self.embed(tokens) + (0.1 * seen if seen is not None else inputs))
        z = torch.where(halted[:, None], z, new)
        seen = torch.sigmoid(new) if calls % 2 else seen
        return z, halted | (count > 5), (tokens + count) % 5, count + (~halted).int(), calls + 1, seen


def flagged():
    torch.manual_seed(1)
    count = torch.tensor([0, 2, 4], dtype=torch.int32)
    z, tokens = torch.randn(3, 4).requires_grad_(), torch.tensor([0, 3, 4])
    return Flags(), (z, torch.tensor([False, False, True]), tokens, count, 0, None), torch.randn(3, 4)
