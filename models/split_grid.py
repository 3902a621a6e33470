"""The grid of `grid_arithmetic` on devices without float64: the nearest float32, and the integer that it lacks.

A value is an integer times 2^-32, as there, in as many bytes: its float32 carries the gradient, an int32 the rest. Sums
and dampings are those of int64, and equal those of float64 to the last bit where both are exact, below 2^20; but zero
has no sign. A float32 of 2^23 and more, inf and nan have no rest: sums there are those of float32.
"""

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

SCALE = 2.0**32
LIMIT = 2.0**23  # of what is split: there the rest is below 2^31
LOW = 27  # bits of the lower limb of a factor


class Split:
    """A tensor on the grid, in two parts, both contiguous: what a cell of float32 reads is the head itself.

    Attributes:
        head: float32, nearest to the value; it has the gradient.
        tail: int32, the value minus the head as a multiple of 2^-32.
    """

    __slots__ = ("head", "tail")

    def __init__(self, head: Tensor, tail: Tensor):
        self.head, self.tail = head, tail

    @classmethod
    def of(cls, value: Tensor) -> "Split":
        """Return a value rounded to the grid."""
        zero = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
        return cls(zero, zero.to(torch.int32)).plus(value, 1.0)

    @property
    def shape(self) -> torch.Size:
        """That of the tensor."""
        return self.head.shape

    @property
    def dtype(self) -> torch.dtype:
        """That of the gradient."""
        return self.head.dtype

    def to(self, dtype: torch.dtype) -> Tensor:
        """Return the value rounded to a dtype no wider than float32."""
        return self.head.to(dtype)

    def detach(self) -> "Split":
        """Return the same without a graph."""
        return Split(self.head.detach(), self.tail)

    def digits(self) -> Tensor:
        """Return a word of lost digits per element, all zero."""
        return torch.zeros_like(self.head, dtype=torch.int64).detach()

    def limbs(self) -> list[Tensor]:
        """Return three float32 tensors whose exact sum is the value; all of them nan where it is not finite."""
        known = self.head.isfinite()
        upper = self.tail >> 16
        parts = upper.to(torch.float32) * 2.0**-16, (self.tail - (upper << 16)).to(torch.float32) * (1 / SCALE)
        return [self.head, *(part.masked_fill(~known, math.nan) for part in parts)]

    def plus(self, value: Tensor, factor: float) -> "Split":
        """Return self + factor * value, the product rounded as float64 rounds it, and then to the grid."""
        if _differentiates(self.head, value):
            return Split(*_Plus.apply(self.head, self.tail, value, factor))  # pyright: ignore
        return Split(*_plus(self.head, self.tail, value, factor))

    def __add__(self, other: "Split") -> "Split":
        return self._added(other, 1)

    def __sub__(self, other: "Split") -> "Split":
        return self._added(other, -1)

    def times(self, lost: Tensor, fraction: Fraction) -> tuple["Split", Tensor]:
        """Return n/d * self on the grid and the lost digits after it; the derivative is n/d."""
        head, tail, lost = _Times.apply(self.head, self.tail, lost, *fraction.as_integer_ratio())  # pyright: ignore
        return Split(head, tail), lost

    def undo(self, lost: Tensor, fraction: Fraction) -> tuple["Split", Tensor]:
        """Return what `times` was given, to the last bit."""
        n, d = fraction.as_integer_ratio()
        quotient, digit = _divided(_joined(self.head, self.tail), n)
        before, digit = _divided(lost * n + digit, d)
        rounded = self.head * (d / n)
        return Split(*_split(quotient * d + digit, rounded, rounded.abs() < LIMIT)), before

    def _added(self, other: "Split", sign: int) -> "Split":
        parts = self.head, self.tail, other.head, other.tail, sign
        if _differentiates(self.head, other.head):
            return Split(*_Sum.apply(*parts))  # pyright: ignore[reportGeneralTypeIssues]
        return Split(*_sum(*parts))


def _differentiates(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() or any(unpack_dual(tensor).tangent is not None for tensor in tensors)


def _joined(head: Tensor, tail: Tensor) -> Tensor:
    """The integers of a value; anything where it is not finite."""
    return (head * SCALE).to(torch.int64).add_(tail)


def _split(integers: Tensor, rounded: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Head and tail of integers, of `rounded` outside of what can be split."""
    head = integers.to(torch.float32).mul_(1 / SCALE)
    tail = integers.sub_((head * SCALE).to(torch.int64)).masked_fill_(~inside, 0)
    return torch.where(inside, head, rounded), tail.to(torch.int32)


def _plus(head: Tensor, tail: Tensor, value: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    fraction, exponent = math.frexp(abs(factor))
    # first by the power of two, in float32: what this rounds or flushes to zero is far below the grid or far too large
    power = min(max(exponent - 1, -126), 127)
    scaled = value.to(torch.float32).contiguous() * math.copysign(2.0**power, factor)
    rest = exponent - power  # 1, save for factors beyond float32
    product = scaled * math.ldexp(fraction, rest)
    inside = head.abs().add_(product.abs()) < LIMIT
    integers = _product(scaled, int(math.ldexp(fraction, 53)), rest - 53)
    return _split(integers.add_(_joined(head, tail)), head + product, inside)


def _product(value: Tensor, factor: int, exponent: int) -> Tensor:
    """The product of float32 and factor * 2^exponent, rounded to 53 bits as in float64, then to multiples of 2^-32."""
    bits = value.view(torch.int32)
    significand = ((bits & 0x7FFFFF) | 0x800000).to(torch.int64)  # 24 bits; of zero and the like too, shifted out below
    right = ((bits & 0x7FFFFFFF) >> 23).to(torch.int64).neg_().add_(150 - 32 - exponent)
    zeros = (factor & -factor).bit_length() - 1
    if zeros >= 24:  # at most 53 bits: nothing to round
        product, right = significand * (factor >> zeros), right - zeros
    else:
        low = significand * (factor % 2**LOW)
        high = (significand * (factor >> LOW)).add_(low >> LOW)
        low &= 2**LOW - 1
        # the product of 76 or 77 bits without its last 20, and a bit that tells whether any of these was set
        product = (high << LOW - 20).add_(low >> 20) << 1
        product += (low & (2**20 - 1)) != 0
        surplus = 3 + (high >> 49)
        product, right = _nearest(product, surplus + 1), right - surplus - 20
    product = _nearest(product, right)
    return torch.where(value < 0, -product, product)


def _nearest(integers: Tensor, right: Tensor) -> Tensor:
    """Integers * 2^-right, rounded half to even, for integers below 2^60; a shift to the left by at most 31."""
    left, right = (-right).clamp_(0, 31), right.clamp(0, 61)
    integers = integers << left
    odd = (integers >> right) & 1
    return (integers << 1).add_(torch.ones_like(right) << right).add_(odd).sub_(1) >> (right + 1)


def _sum(head: Tensor, tail: Tensor, head2: Tensor, tail2: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    integers = _joined(head, tail).add_(_joined(head2, tail2), alpha=sign)
    return _split(integers, torch.add(head, head2, alpha=sign), head.abs().add_(head2.abs()) < LIMIT)


def _divided(integers: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Quotient and remainder of a division that rounds down."""
    if d == 1:
        return integers, torch.zeros_like(integers)
    quotient = torch.div(integers, d, rounding_mode="floor")
    return quotient, integers.sub(quotient, alpha=d)


class _Plus(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, head: Tensor, tail: Tensor, value: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        ctx.dtype, ctx.factor = value.dtype, factor
        head, tail = _plus(head, tail, value, factor)
        ctx.mark_non_differentiable(tail)
        return head, tail

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None, gradients[0].to(ctx.dtype) * ctx.factor, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        base, _, value, _ = tangents
        return base + value.to(torch.float32) * ctx.factor, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, head: Tensor, tail: Tensor, head2: Tensor, tail2: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        ctx.sign = sign
        head, tail = _sum(head, tail, head2, tail2, sign)
        ctx.mark_non_differentiable(tail)
        return head, tail

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None, gradients[0] if ctx.sign == 1 else -gradients[0], None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0] + tangents[2] * ctx.sign, None


class _Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, head: Tensor, tail: Tensor, lost: Tensor, n: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.ratio = n / d
        quotient, digit = _divided(_joined(head, tail), d)
        after, digit = _divided(lost * d + digit, n)
        rounded = head * ctx.ratio
        if n > 1:  # digits of inf are nan, as in float64
            rounded += head - head
        head, tail = _split(quotient * n + digit, rounded, head.abs() < LIMIT)
        ctx.mark_non_differentiable(tail, after)
        return head, tail, after

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.ratio, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0] * ctx.ratio, None, None
