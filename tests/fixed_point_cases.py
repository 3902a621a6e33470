"""Cells with a fixed point, and their exact gradient there by a dense solve of the Jacobian and by long BPTT."""

from functools import cache

import torch
from problems import leaves_of
from torch import nn

from loopgrad.gradients import BPTT, tree
from loopgrad.gradients.solvers import LINEAR
from loopgrad.models import TRM

SOLVERS = list(LINEAR)


class Mlp(nn.Module):
    def __init__(self, size=6, gain=0.7):
        super().__init__()
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)
        self.gain = gain

    def forward(self, state, inputs, step):
        return torch.tanh(self.gain * self.down(torch.nn.functional.silu(self.up(state + inputs))) + inputs)


class Gru(nn.Module):
    """Two streams in a dict, one update of each per cycle, so that no single update has the fixed point."""

    period = 2

    def __init__(self, size=5):
        super().__init__()
        self.fast, self.slow = nn.GRUCell(size, size), nn.GRUCell(size, size)

    def forward(self, state, inputs, step):
        if step % 2 == 0:
            return {"fast": self.fast(inputs["x"] + state["slow"], state["fast"]), "slow": state["slow"]}
        return {"fast": state["fast"], "slow": self.slow(state["fast"], state["slow"])}


def mlp():
    return Mlp(), torch.randn(4, 6), torch.randn(4, 6), 120


def gru():
    return Gru(), {"fast": torch.randn(4, 5), "slow": torch.zeros(4, 5)}, {"x": torch.randn(4, 5)}, 600


def trm():
    model = TRM(5, 4, hidden_size=8, num_heads=2, H_cycles=2, L_cycles=2, num_layers=1)
    with torch.no_grad():
        for parameter in model.cell.parameters():
            parameter *= 0.3
    state = {name: z.double() for name, z in model.initial_state(3).items()}
    return model.cell, state, torch.randn(3, *state["z_L"].shape[1:]), 900


PROBLEMS = {"mlp": mlp, "gru with a dict state": gru, "trm cycle": trm}


def problem(name, dtype=torch.float64):
    torch.manual_seed(0)
    cell, state, inputs, num_steps = PROBLEMS[name]()
    cell = cell.to(dtype)
    state = tree.map_tensors(lambda leaf: leaf.to(dtype), state)
    inputs = tree.map_tensors(lambda leaf: leaf.detach().to(dtype).requires_grad_(), inputs)
    return cell, state, inputs, num_steps


def weighted(state):
    """A loss with another cotangent for every entry."""
    return sum((leaf * torch.linspace(-1, 2, leaf.numel()).to(leaf).view_as(leaf)).sum() for leaf in leaves_of(state))


def gradients(loss, cell, inputs):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*cell.parameters(), *leaves_of(inputs)])])


def cycle(cell, state, inputs, num_steps):
    for step in range(num_steps - getattr(cell, "period", 1), num_steps):
        state = cell(state, inputs, step)
    return state


def dense(cell, state, inputs, num_steps):
    """(1 - J)^T w = g with the whole Jacobian of the cycle, and one product of it for parameters and inputs."""
    with torch.no_grad():
        for step in range(num_steps):
            state = cell(state, inputs, step)
    leaves, unflatten = tree.flatten(state)
    sizes = [leaf.numel() for leaf in leaves]

    def flat(vector):
        parts = [part.view_as(leaf) for part, leaf in zip(vector.split(sizes), leaves, strict=True)]
        return torch.cat([leaf.flatten() for leaf in leaves_of(cycle(cell, unflatten(parts), inputs, num_steps))])

    point = torch.cat([leaf.flatten() for leaf in leaves])
    jacobian = torch.autograd.functional.jacobian(flat, point)
    last = [leaf.clone().requires_grad_() for leaf in leaves]
    g = torch.cat([g.flatten() for g in torch.autograd.grad(weighted(unflatten(last)), last)])
    w = torch.linalg.solve((torch.eye(len(g)) - jacobian).T, g)
    return gradients(flat(point.clone()) @ w, cell, inputs), jacobian


@cache
def witness(name):
    """Two gradients (dense solve, long BPTT), the Jacobian of the cycle and the last state, once per problem."""
    by_solve, jacobian = dense(*problem(name))
    cell, state, inputs, num_steps = problem(name)
    last = BPTT()(cell, state, inputs, num_steps).state
    by_bptt = gradients(weighted(last), cell, inputs)
    return by_solve, by_bptt, jacobian, [leaf.detach() for leaf in leaves_of(last)]


def error(got, expected):
    return float((got - expected).norm() / expected.norm())
