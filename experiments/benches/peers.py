"""Reversible recursions of other libraries: revlib, memcnn, and RevDEQ's update as published.

revlib and memcnn are optional; what is missing raises ImportError when it is asked for.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Method = Callable[[Tensor, Tensor], Tensor]  # (z_0, x) -> z_T
Maker = Callable[[nn.Module, int], Method]  # (cell, T) -> method

BETA = 0.5  # of RevDEQ's damping


class _Held(nn.Module):
    """Update number `step` as the peers take it, a map of z alone: x is held for it in `box`."""

    def __init__(self, cell: nn.Module, length: int, step: int, box: list[Tensor]):
        super().__init__()
        self.cell, self.length, self.step, self.box = cell, length, step, box

    def forward(self, z: Tensor) -> Tensor:
        return self.cell(z, self.box[0], self.step) / self.length


def _peer(build: Callable[[list[_Held]], nn.Module]) -> Maker:
    def run(model: nn.Module, box: list[Tensor], z_0: Tensor, x: Tensor) -> Tensor:
        box[:] = [x]
        return model(torch.cat([z_0, z_0])).chunk(2)[1]

    def make(cell: nn.Module, length: int) -> Method:
        box: list[Tensor] = []
        return partial(run, build([_Held(cell, length, step, box) for step in range(length)]), box)

    return make


def revlib(mode: str) -> Maker:
    """Return revlib's additive coupling in one of its memory modes."""

    def build(held: list[_Held]) -> nn.Module:
        revlib = importlib.import_module("revlib")
        return revlib.ReversibleSequential(*held, split_dim=0, memory_mode=getattr(revlib.MemoryModes, mode))

    return _peer(build)


def _memcnn(held: list[_Held]) -> nn.Module:
    memcnn = importlib.import_module("memcnn")
    couplings = [memcnn.AdditiveCoupling(*pair, split_dim=0) for pair in zip(held[::2], held[1::2], strict=True)]
    blocks = [memcnn.InvertibleModuleWrapper(coupling, keep_input=False) for coupling in couplings]
    for block in blocks:  # it has emptied its input's storage, which the count of bytes sees at the next operator
        block.register_forward_hook(lambda _, given, after: [given[0].detach(), after][1])
    return nn.Sequential(*blocks)


memcnn: Maker = _peer(_memcnn)


class _RevDEQ(torch.autograd.Function):
    """y <- (1 - b) y + b f(z), z <- (1 - b) z + b f(y), undone by dividing; here one line each, y and z swapped."""

    @staticmethod
    def forward(ctx: Any, cell: nn.Module, length: int, dtype: torch.dtype, z_0: Tensor, x: Tensor, *weights: Tensor):
        ctx.cell, ctx.length = cell, length
        y = z = z_0.to(dtype)
        for step in range(length):
            y, z = z, (1 - BETA) * y + BETA * cell(z.to(x.dtype), x, step)
        ctx.save_for_backward(y, z, x, *weights)
        return z.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        y, z, *given = ctx.saved_tensors
        names = [name for name, _ in ctx.cell.named_parameters()]
        leaves = [tensor.detach().requires_grad_() for tensor in given]
        sums = [torch.zeros_like(leaf) for leaf in leaves]
        to_y, to_z = torch.zeros_like(z), gradient.to(z.dtype)
        for step in reversed(range(ctx.length)):
            with torch.enable_grad():
                read = y.to(given[0].dtype).detach().requires_grad_()
                entry, x, *weights = [leaf.view_as(leaf) for leaf in (read, *leaves)]
                image = functional_call(ctx.cell, dict(zip(names, weights, strict=True)), (entry, x, step))
            found = torch.autograd.grad(image, [read, *leaves], (BETA * to_z).to(image.dtype))
            torch._foreach_add_(sums, list(found[1:]))
            y, z = (z - BETA * image.detach()) / (1 - BETA), y
            to_y, to_z = (1 - BETA) * to_z, to_y + found[0]
        return None, None, None, (to_y + to_z).to(gradient.dtype), *sums


def revdeq(dtype: torch.dtype) -> Maker:
    """Return RevDEQ's recursion with its state in a dtype."""
    return lambda cell, length: lambda z_0, x: _RevDEQ.apply(cell, length, dtype, z_0, x, *cell.parameters())  # pyright: ignore
