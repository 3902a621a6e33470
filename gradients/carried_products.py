"""x W^T + b + s x B A^T for one perturbation or many at once, and torch's recurrent cells made of two such products."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Factors:
    """A perturbation A B^T of a matrix, with 1 / sqrt(rank) in A; or many, along a first dimension."""

    a: Tensor
    b: Tensor


def carried_linear(
    by: float, together: bool, factors: Factors, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Return F.linear(x, weight + by A B^T, bias), in which the perturbation of the weight is not formed.

    Args:
        by: Factor of the perturbation.
        together: Whether this is called within torch.vmap over the perturbations.
        factors: The perturbation.
        x: Read.
        weight: Matrix.
        bias: None if there is none.
    """
    return _called(together, partial(_linear, by), [x], [weight, bias, factors.a, factors.b])


def carried_cell(
    func: Any,
    by: float,
    together: bool,
    factors: Sequence[Factors | None],
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor | None],
) -> Any:
    """Return what one of `CELLS` gives for weights that are perturbed so.

    Args:
        func: The cell.
        by: Factor of the perturbations.
        together: Whether this is called within torch.vmap over them.
        factors: Those of w_ih and w_hh; None for one that is not perturbed so.
        x: Input.
        states: h, and c of an LSTM.
        weights: w_ih, w_hh, b_ih and b_hh.
    """
    pairs = [tensor for it in factors for tensor in ((None, None) if it is None else (it.a, it.b))]
    return _called(together, partial(_cell, CELLS[func], by), [x, *states], [*weights, *pairs])


class Together(torch.autograd.Function):
    """A function of rows and weights that knows by itself what to do with many members: torch.vmap asks it once.

    Its graph is searched for tensors that nobody has passed, and never differentiated.
    """

    generate_vmap_rule = False

    @staticmethod
    def forward(function: Callable[..., Any], count: int, *tensors: Tensor | None) -> Any:
        """Call it for a single member."""
        found = function([it.unsqueeze(0) for it in tensors[:count] if it is not None], tensors[count:])
        return tuple(it.squeeze(0) for it in found) if isinstance(found, tuple) else found.squeeze(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: Any, function: Callable[..., Any], count: int, *tensors: Tensor | None
    ) -> Any:
        """Call it for all members: each tensor that differs between them has them in dimension 0."""
        dims = in_dims[2:]
        first = [it if it is None or d is None else it.movedim(d, 0) for it, d in zip(tensors, dims, strict=True)]
        rows = [
            it.unsqueeze(0) if d is None else it for it, d in zip(first[:count], dims, strict=False) if it is not None
        ]
        found = function(rows, first[count:])
        return found, tuple(0 for _ in found) if isinstance(found, tuple) else 0

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Refuse: perturbed updates have no gradient of their own."""
        raise RuntimeError("an update under a perturbation is not differentiated")


def _called(together: bool, function: Callable[..., Any], rows: list[Tensor], others: list[Tensor | None]) -> Any:
    if together:
        return Together.apply(function, len(rows), *rows, *others)
    return Together.forward(function, len(rows), *rows, *others)  # with its graph, as far as there is one


def _linear(by: float, rows: Sequence[Tensor], others: Sequence[Tensor | None]) -> Tensor:
    return _product(by, rows[0], *others)  # pyright: ignore[reportArgumentType]


def _cell(gated: Callable[..., Any], by: float, rows: Sequence[Tensor], others: Sequence[Tensor | None]) -> Any:
    w_ih, w_hh, b_ih, b_hh, a_i, b_i, a_h, b_h = others
    assert w_ih is not None and w_hh is not None
    return gated(_product(by, rows[0], w_ih, b_ih, a_i, b_i), _product(by, rows[1], w_hh, b_hh, a_h, b_h), *rows[1:])


def _product(by: float, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor | None, b: Tensor | None) -> Tensor:
    """Return (members, ..., out) for x (members or 1, ..., in); any other tensor may have the members in front."""
    shape, x = x.shape[1:-1], x.reshape(len(x), -1, x.shape[-1])
    own_weight, own_bias = weight.dim() == 3, bias is not None and bias.dim() == 2
    y = x @ weight.mT if own_weight else F.linear(x, weight, None if own_bias else bias)
    if bias is not None and (own_weight or own_bias):
        y = y + (bias.unsqueeze(1) if own_bias else bias)
    if a is not None and b is not None:
        a, b = (it if it.dim() == 3 else it.unsqueeze(0) for it in (a, b))
        narrow = x @ b  # (members, rows, rank)
        if len(y) < len(narrow):
            y = y.expand(len(narrow), -1, -1).clone()
        if a.shape[-1] == 1:
            y = y.addcmul_(narrow, a.mT, value=by)
        else:
            y = y.baddbmm_(narrow, a.mT.expand(len(narrow), -1, -1), alpha=by)
    return y.reshape(len(y), *shape, y.shape[-1])


def _gru(x: Tensor, h: Tensor, before: Tensor) -> Tensor:
    size = before.shape[-1]
    reset = x[..., :size].add_(h[..., :size]).sigmoid_()
    update = x[..., size : 2 * size].add_(h[..., size : 2 * size]).sigmoid_()
    new = x[..., 2 * size :].add_(h[..., 2 * size :].mul_(reset)).tanh_()
    return (before - new).mul_(update).add_(new)


def _lstm(x: Tensor, h: Tensor, _: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    size, gates = c.shape[-1], x.add_(h)
    read, kept, new, shown = (gates[..., i * size : (i + 1) * size] for i in range(4))
    c = (kept.sigmoid() * c).add_(read.sigmoid() * new.tanh())
    return shown.sigmoid().mul_(c.tanh()), c


CELLS: dict[Any, Callable[..., Any]] = {
    torch.gru_cell: _gru,
    torch.lstm_cell: _lstm,
    torch.rnn_tanh_cell: lambda x, h, _: x.add_(h).tanh_(),
    torch.rnn_relu_cell: lambda x, h, _: x.add_(h).relu_(),
}
