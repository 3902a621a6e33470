"""Recurrent cells with an input and a loss at every update, and real-time recurrent learning written out by hand."""

from collections.abc import Callable

import torch
from problems import leaves_of
from torch import Tensor, nn


class GRU(nn.Module):
    """A GRU that reads x_t; its readout is a loss per sample with weights of its own."""

    def __init__(self, features=5, width=3):
        super().__init__()
        self.gru = nn.GRUCell(width, features)

    def forward(self, state, x, step):
        return self.gru(x, state)


class LSTM(nn.Module):
    """An LSTM over a tuple."""

    def __init__(self, features=4, width=3):
        super().__init__()
        self.lstm = nn.LSTMCell(width, features)

    def forward(self, state, x, step):
        return self.lstm(x, state)


class TRMLike(nn.Module):
    """Two normalised streams over a dict, one block for both, z_H updated once in three."""

    period = 3

    def __init__(self, features=4, width=3):
        super().__init__()
        self.up, self.down = nn.Linear(features, 6), nn.Linear(6, features)
        self.enter = nn.Linear(width, features)

    def block(self, z):
        z = z + self.down(nn.functional.silu(self.up(z)))
        return z * (z.square().mean(-1, keepdim=True) + 1e-5).rsqrt()

    def forward(self, state, x, step):
        if step % 3 < 2:
            return {"z_H": state["z_H"], "z_L": self.block(state["z_L"] + state["z_H"] + self.enter(x))}
        return {"z_H": self.block(state["z_H"] + state["z_L"]), "z_L": state["z_L"]}


class Diagonal(nn.Module):
    """z <- tanh(a) z + B x: a real diagonal linear recurrent unit."""

    def __init__(self, features=5, width=3):
        super().__init__()
        self.a = nn.Parameter(torch.randn(features))
        self.B = nn.Linear(width, features)

    def forward(self, state, x, step):
        return torch.tanh(self.a) * state + self.B(x)


class Chain(nn.Module):
    """A tanh RNN whose recurrent matrix has two diagonals: feature i acts on itself and on the next."""

    def __init__(self, features=5, width=3):
        super().__init__()
        self.own, self.next = nn.Parameter(0.5 * torch.randn(features)), nn.Parameter(torch.randn(features - 1))
        self.B = nn.Linear(width, features)

    def forward(self, state, x, step):
        moved = nn.functional.pad(self.next * state[:, :-1], (1, 0))
        return torch.tanh(self.own * state + moved + self.B(x))


class Loss(nn.Module):
    """Cross entropy per sample against a class that the input says."""

    def __init__(self, features):
        super().__init__()
        self.head = nn.Linear(features, 3)

    def forward(self, state, inputs, x, step):
        features = torch.cat([leaf.flatten(1) for leaf in leaves_of(state)], 1)
        return nn.functional.cross_entropy(self.head(features), x.argmax(1), reduction="none")


CELLS: dict[str, Callable[[], nn.Module]] = {
    "gru": GRU, "lstm": LSTM, "trm_like": TRMLike, "diagonal": Diagonal, "chain": Chain,
}  # fmt: skip


def problem(name: str, num_steps: int = 7, batch: int = 3, seed: int = 0, dtype=torch.float64):
    """Return (cell, readout, z_0, xs), all that floats with a gradient."""
    torch.manual_seed(seed)
    two = name in ("lstm", "trm_like")
    cell, readout = CELLS[name](), Loss(8 if two else 5)

    def leaf(*shape):
        return torch.randn(*shape, dtype=dtype).requires_grad_()

    size = 4 if two else 5
    state = leaf(batch, size)
    if name == "lstm":
        state = (state, leaf(batch, size))
    if name == "trm_like":
        state = {"z_H": state, "z_L": leaf(batch, size)}
    xs = leaf(num_steps, batch, 3)
    return cell.to(dtype), readout.to(dtype), state, xs


def sources_of(cell, readout, state, xs):
    return [*cell.parameters(), *readout.parameters(), *leaves_of(state), xs]


def by_hand(cell, readout, state, xs):
    """Return the last state and the summed losses of a plain loop."""
    total = 0
    for step, x in enumerate(xs.unbind(0)):
        state = cell(state, x, step)
        total = total + readout(state, None, x, step)
    return state, total


def weighed(state, losses) -> Tensor:
    """Return a number that weighs samples and leaves differently."""
    weights = torch.linspace(0.5, 1.5, len(losses), dtype=losses.dtype)
    return (losses * weights).sum() + sum((i + 1) * leaf.sin().sum() for i, leaf in enumerate(leaves_of(state)))


def masked_by_hand(cell, readout, state, xs, rule):
    """Return the gradient by the cell's parameters of `weighed`, from dense Jacobians of each sample by autograd.

    Args:
        rule: Called as rule(D, J, I), returns the next J.
    """
    parameters = dict(cell.named_parameters())
    flat = torch.cat([p.detach().flatten() for p in parameters.values()])
    sizes = [p.numel() for p in parameters.values()]

    def update(z, flat, x, step):
        parts = (p.view(like.shape) for p, like in zip(flat.split(sizes), parameters.values(), strict=True))
        given = dict(zip(parameters, parts, strict=True))
        return torch.func.functional_call(cell, given, (z.unsqueeze(0), x.unsqueeze(0), step)).squeeze(0)

    weights, total = torch.linspace(0.5, 1.5, len(state), dtype=flat.dtype), torch.zeros_like(flat)
    for b in range(len(state)):
        z, J = state[b].detach(), flat.new_zeros(state.shape[1], len(flat))
        for step in range(len(xs)):
            x = xs[step, b].detach()
            of_z, of_p = torch.autograd.functional.jacobian(
                lambda z, p, x=x, step=step: update(z, p, x, step), (z, flat)
            )
            z, J = update(z, flat, x, step), rule(of_z, J, of_p)
            adjoint = torch.autograd.functional.jacobian(
                lambda z, x=x: readout(z.unsqueeze(0), None, x.unsqueeze(0), 0)[0], z
            )
            total += weights[b] * adjoint @ J
        total += torch.cos(z) @ J
    return total
