"""Cells that go wrong on demand: at one update, sample, leaf and element, always, or only when they are run again."""

from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import nn

SIZE, BATCH, STEPS = 3, 3, 12
VALUES = (float("nan"), float("inf"), float("-inf"), 1e38, -1e38)


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Attributes:
        value: That is put in place of what should be there.
        place: "image" or "derivative" of update `update`, "weight", "input" or "start".
        when: "always"; "later" for an image when backward runs the update again; a number for its n-th call alone.
        update: Number of the update.
        sample: Row.
        leaf: Of the state.
        element: Column; None for the whole row.
    """

    value: float
    place: str = "image"
    when: str | int = "always"
    update: int = 0
    sample: int = 0
    leaf: int = 0
    element: int | None = 0


def drawn(draw: torch.Generator, place: str, when: str | int, leaves: int) -> Fault:
    """Return a fault at a random update, sample, leaf and element."""

    def below(count: int) -> int:
        return int(torch.randint(count, (), generator=draw))

    value, element = VALUES[below(len(VALUES))], below(SIZE + 1)
    update, sample, leaf = below(STEPS), below(BATCH), below(leaves)
    return Fault(value, place, when, update, sample, leaf, None if element == SIZE else element)


class _Wrong(torch.autograd.Function):
    """A tensor as it is, whose derivative, in both directions, is multiplied with a value at wrong places."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor, wrong, value):
        return tensor.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, wrong, ctx.value = inputs
        ctx.save_for_backward(wrong)
        ctx.save_for_forward(wrong)

    @staticmethod
    def backward(ctx, grad):
        return torch.where(ctx.saved_tensors[0], ctx.value, 1.0) * grad, None, None

    @staticmethod
    def jvp(ctx, tangent, _, __):
        return torch.where(ctx.saved_tensors[0], ctx.value, 1.0) * tangent


class Faulty(nn.Module):
    """An update of one or two leaves (batch, SIZE), with a fault.

    Attributes:
        fault: What goes wrong, None for nothing.
        later: Whether faults of `when="later"` strike by now.
        first: Number of the first sample.
    """

    def __init__(self, kind: str, leaves: int, dtype: torch.dtype, fault: Fault | None = None):
        super().__init__()
        draw = torch.Generator().manual_seed(7)
        self.kind, self.leaves, self.fault, self.later, self.first = kind, leaves, fault, False, 0
        self.calls: Counter[int] = Counter()
        weight = torch.randn(leaves, SIZE, SIZE, generator=draw, dtype=torch.float64)
        self.weight = nn.Parameter((0.5 * torch.linalg.qr(weight)[0]).to(dtype))
        self.bias = nn.Parameter(torch.randn(SIZE, generator=draw, dtype=torch.float64).to(dtype))
        if fault is not None and fault.place == "weight":
            with torch.no_grad():
                self.weight[fault.leaf, fault.sample, fault.element or 0] = fault.value

    def forward(self, state, inputs, step):
        before = state if self.leaves > 1 else [state]
        images = []
        for i, leaf in enumerate(before):
            image = leaf @ self.weight[i] + self.bias + inputs
            if self.leaves > 1:
                image = image + 0.2 * before[1 - i]
            images.append(self.bounded(image, leaf, step))
        self.calls[step] += 1
        if self.fault is not None and self.strikes(step):
            images[self.fault.leaf] = self.struck(images[self.fault.leaf])
        return tuple(images) if self.leaves > 1 else images[0]

    def bounded(self, image, leaf, step):
        if self.kind == "tanh":
            return torch.tanh(image)
        if self.kind == "clamped":
            return image.clamp(-1.5, 1.5)
        if self.kind == "halting":  # the first sample is handed through from the fifth update on
            halted = self.first + torch.arange(len(leaf)).unsqueeze(1) < (step > 4)
            return torch.where(halted, leaf, torch.tanh(image))
        if self.kind == "mending":
            return torch.tanh(image).nan_to_num(0.3)
        if self.kind == "mixing":
            return torch.tanh(image + 0.1 * leaf.mean(0))
        return image  # linear

    def strikes(self, step: int) -> bool:
        fault = self.fault
        if fault.place not in ("image", "derivative") or fault.update != step:
            return False
        if isinstance(fault.when, int):
            return self.calls[step] == fault.when
        return fault.when == "always" or self.later

    def struck(self, image):
        fault = self.fault
        wrong = torch.zeros(image.shape, dtype=torch.bool)
        wrong[fault.sample, slice(None) if fault.element is None else fault.element] = True
        value = torch.tensor(fault.value, dtype=image.dtype)
        return torch.where(wrong, value, image) if fault.place == "image" else _Wrong.apply(image, wrong, value)


KINDS = ("tanh", "clamped", "halting", "mending", "linear", "mixing")


@dataclass
class Case:
    """A faulty cell with a state and inputs to start from, and a loss by sample, in which one may have no part."""

    cell: Faulty
    state: object
    inputs: torch.Tensor
    loss: str
    left_out: int | None

    def sources(self):
        return [*self.cell.parameters(), self.inputs, *leaves_of(self.state)]

    def value(self, state):
        """Return the loss."""
        leaves = leaves_of(state)
        if self.left_out is not None:
            leaves = [torch.cat([leaf[: self.left_out], leaf[self.left_out + 1 :]]) for leaf in leaves]
        terms = [leaf.tanh() if self.loss == "tanh" else leaf**2 for leaf in leaves]
        return sum((i + 1) * term.sum() for i, term in enumerate(terms))


def leaves_of(state):
    return list(state) if isinstance(state, tuple) else [state]


def case_of(kind, leaves, dtype, loss, fault, row=None, again=True):
    """Return the case; with `row`, of that sample alone; without `again`, as if no update were run again."""
    draw = torch.Generator().manual_seed(11)
    tensors = [torch.randn(BATCH, SIZE, generator=draw, dtype=torch.float64).to(dtype) for _ in range(leaves + 1)]
    left_out = fault.sample if fault is not None and loss == "others" else None
    if fault is not None and fault.place in ("input", "start"):
        place = slice(None) if fault.element is None else fault.element
        tensors[0 if fault.place == "input" else 1 + fault.leaf][fault.sample, place] = fault.value
    if row is not None:
        tensors = [tensor[row : row + 1] for tensor in tensors]
        left_out = 0 if left_out == row else None
        if fault is not None and fault.place in ("image", "derivative"):
            fault = replace(fault, sample=0) if fault.sample == row else None
    inputs, *state = [tensor.clone().requires_grad_() for tensor in tensors]
    cell = Faulty(kind, leaves, dtype, fault if again or fault is None or fault.when == "always" else None)
    cell.first = row or 0
    return Case(cell, tuple(state) if leaves > 1 else state[0], inputs, loss, left_out)
