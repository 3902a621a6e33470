"""Cells with state outside their state, and changes to what a cell reads between forward and backward."""

from collections import deque

import torch
from torch import nn

SIZE = 4


class Outside(nn.Module):
    """tanh(W z + x + what `extra` makes of the step, the image and what the cell keeps)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(SIZE, SIZE).double()
        self.begin()

    def begin(self):
        pass

    def extra(self, state, step):
        return 0.0

    def forward(self, state, inputs, step):
        return torch.tanh(self.linear(state) + inputs + self.extra(state, step))


class Counts(Outside):
    def begin(self):
        self.calls = 0

    def extra(self, state, step):
        self.calls += 1
        return 0.1 * self.calls


class CountsInABuffer(Outside):
    def begin(self):
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def extra(self, state, step):
        self.calls += 1
        return 0.1 * self.calls


class CountsInATensor(Outside):
    def begin(self):
        self.calls = torch.zeros((), dtype=torch.float64)

    def extra(self, state, step):
        self.calls.add_(1)
        return 0.1 * self.calls


class OwnGenerator(Outside):
    def begin(self):
        self.generator = torch.Generator().manual_seed(0)

    def extra(self, state, step):
        return torch.randn(state.shape, generator=self.generator, dtype=state.dtype)


class PythonRandom(Outside):
    def begin(self):
        import random

        self.random = random.Random(0)

    def extra(self, state, step):
        return self.random.random()


class KeepsAList(Outside):
    detach = False

    def begin(self):
        self.kept = []

    def extra(self, state, step):
        self.kept.append((state.detach() if self.detach else state) * 0.5)
        return sum(self.kept) / len(self.kept)


class KeepsAListDetached(KeepsAList):
    detach = True


class KeepsADeque(Outside):
    detach = False

    def begin(self):
        self.kept = deque(maxlen=2)

    def extra(self, state, step):
        self.kept.append((state.detach() if self.detach else state) * 0.5)
        return sum(self.kept)


class KeepsADequeDetached(KeepsADeque):
    detach = True


class KeepsByStep(Outside):
    """Written at a step before it is read there, so that detached entries are the same in a second run."""

    def begin(self):
        self.kept = {}

    def extra(self, state, step):
        self.kept[step] = state.detach() * 0.5
        return sum(self.kept[i] for i in range(step + 1))


class SetAtTheFirstStep(Outside):
    detach = False

    def extra(self, state, step):
        if step == 0:
            self.first = state.detach() if self.detach else state * 2.0
        return self.first


class SetAtTheFirstStepDetached(SetAtTheFirstStep):
    detach = True


class KeepsThePrevious(Outside):
    def begin(self):
        self.previous = 0.0

    def extra(self, state, step):
        found, self.previous = self.previous, state.detach() * 0.5
        return found


OUTSIDE = {
    cls.__name__: cls
    for cls in (
        Counts, CountsInABuffer, CountsInATensor, OwnGenerator, PythonRandom, KeepsAList, KeepsAListDetached,
        KeepsADeque, KeepsADequeDetached, KeepsByStep, SetAtTheFirstStep, SetAtTheFirstStepDetached, KeepsThePrevious,
    )
}  # fmt: skip


class Scaled(nn.Module):
    """A cell with a weight that trains, one that does not, a plain tensor, a copy of the weights and a buffer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.frozen = nn.Linear(SIZE, SIZE).double(), nn.Linear(SIZE, SIZE).double()
        self.frozen.requires_grad_(False)
        self.plain = torch.full((SIZE,), 0.5, dtype=torch.float64)
        self.held = [torch.full((SIZE,), 0.5, dtype=torch.float64)]
        self.register_buffer("scale", torch.full((SIZE,), 0.5, dtype=torch.float64))

    def forward(self, state, inputs, step):
        return torch.tanh(self.linear(state) + self.frozen(state) * self.plain + self.held[0] * self.scale + inputs)


def load(cell):
    cell.load_state_dict({name: value + 0.3 for name, value in cell.state_dict().items()})


def average(cell):
    with torch.no_grad():
        for slow, fast in zip(cell.frozen.parameters(), cell.linear.parameters(), strict=True):
            slow.lerp_(fast, 0.5)


def written(*path):
    def change(cell):
        value = cell
        for name in path:
            value = value[name] if isinstance(name, int) else getattr(value, name)
        value.add_(0.3)

    return change


def past_autograd(*path):
    def change(cell):
        value = cell
        for name in path:
            value = value[name] if isinstance(name, int) else getattr(value, name)
        value.data += 0.3

    return change


def replaced(cell):
    cell.frozen.weight = nn.Parameter(cell.frozen.weight + 0.3, requires_grad=False)


def plain_replaced(cell):
    cell.plain = cell.plain + 0.3


CHANGES = {
    "an average of the weights": average,
    "load_state_dict": load,
    "a frozen weight": written("frozen", "weight"),
    "a frozen weight's data": past_autograd("frozen", "weight"),
    "a frozen weight replaced": replaced,
    "a plain tensor": written("plain"),
    "a plain tensor's data": past_autograd("plain"),
    "a plain tensor replaced": plain_replaced,
    "a tensor in a list": written("held", 0),
    "a tensor in a list, its data": past_autograd("held", 0),
    "a buffer": written("scale"),
    "a buffer's data": past_autograd("scale"),
    "frozen parameters that thaw": lambda cell: cell.frozen.requires_grad_(True),
}
