"""Numbers on a grid: sums and dampings of states that can be undone to the last bit.

A value is an integer times 2^-32 held in float64, where sums of integers below 2^52 are exact; nan and inf stay.
A product with n/d loses the remainder of a division by d. It goes into a second integer per element, the lost digits,
whose own low digits fill the gap that the multiplication by n leaves (Maclaurin et al., 2015, arXiv 1502.03492).
Where a device has no float64, `split_grid` does the same in int64.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from loopgrad.gradients import wide
from loopgrad.models.split_grid import SCALE, Split

_WORD = 2**53  # integers below are exact in float64


def to_grid(value: Tensor, factor: float = 1.0) -> Tensor:
    """Return factor * value rounded to a multiple of 2^-32, as the integer; the derivative is that of the product."""
    return _ToGrid.apply(value, factor * SCALE)  # pyright: ignore[reportReturnType]


def on_grid(value: Tensor) -> Tensor | Split:
    """Return a value rounded to the grid, in the form that its device has."""
    return to_grid(value) * (1 / SCALE) if wide.has_float64(value.device) else Split.of(value)


def no_digits(value: Tensor | Split) -> Tensor:
    """Return a word of lost digits per element of a value on the grid, all zero."""
    return value.digits() if isinstance(value, Split) else torch.zeros_like(value)


def plus(base: Tensor | Split, value: Tensor, factor: float) -> Tensor | Split:
    """Return base + factor * value for a base on the grid, the product rounded to the grid."""
    if isinstance(base, Split):
        return base.plus(value, factor)
    if torch.is_grad_enabled() or any(unpack_dual(tensor).tangent is not None for tensor in (base, value)):
        return _Plus.apply(base, value, factor)  # pyright: ignore[reportReturnType]
    return _sum(base, value, factor)  # the Function costs as much as the sum


def _sum(base: Tensor, value: Tensor, factor: float) -> Tensor:
    integers = _integers(value, factor * SCALE)
    return torch.add(base, integers, alpha=1 / SCALE, out=integers)


def _integers(value: Tensor, factor: float) -> Tensor:
    return value.to(torch.float64, copy=True).mul_(factor).round_()


@dataclass(frozen=True)
class Ratio:
    """Multiplication of grid values by n/d < 1, and how its lost digits are stored.

    Attributes:
        fraction: n/d.
        num_bytes: Size of a stored word of lost digits.
        window: Products after which a word is full; num_bytes * 8 / window is the number of bits per product.
    """

    fraction: Fraction
    num_bytes: int
    window: int

    @classmethod
    def of(cls, fraction: Fraction) -> "Ratio":
        """Choose the word that stores the fewest bits per product.

        Raises:
            ValueError: The denominator is so large that no word holds the digits of one product.
        """
        words = [(size, _products(fraction, 256**size)) for size in range(1, 7)]
        words = [(size, window) for size, window in words if window]
        if not words:
            raise ValueError(
                f"a product with {fraction} loses up to log2({fraction.denominator}) bits: take a fraction"
            )
        size, window = min(words, key=lambda word: word[0] / word[1])
        return cls(fraction, size, window)

    def times(self, value: Any, lost: Tensor) -> tuple[Any, Tensor]:
        """Return n/d * value on the grid and the lost digits after it; the derivative is n/d."""
        if isinstance(value, Split):
            return value.times(lost, self.fraction)
        return _Times.apply(value, lost, self.fraction.numerator, self.fraction.denominator)  # pyright: ignore

    def undo(self, value: Any, lost: Tensor) -> tuple[Any, Tensor]:
        """Return what `times` was given, to the last bit."""
        if isinstance(value, Split):
            return value.undo(lost, self.fraction)
        n, d = self.fraction.numerator, self.fraction.denominator
        if n == 1:
            quotient = value * SCALE
        else:
            quotient = (value / (n / SCALE)).floor_()
            lost = (lost * n).add_(value.sub(quotient, alpha=n / SCALE), alpha=SCALE)
        before = (lost / d).floor_()
        return quotient.mul_(d).add_(lost.sub(before, alpha=d)).mul_(1 / SCALE), before

    def pack(self, lost: Tensor) -> Tensor:
        """Return the lost digits of a full word in `num_bytes` bytes per element, (*lost.shape, num_bytes)."""
        words = lost.contiguous().to(torch.int64).unsqueeze(-1)  # (..., 1)
        return words.view(torch.uint8)[..., : self.num_bytes].contiguous()

    def unpack(self, packed: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return what `pack` was given, in its dtype."""
        words = packed.new_zeros((*packed.shape[:-1], 8))
        words[..., : self.num_bytes] = packed
        return words.view(torch.int64).squeeze(-1).to(dtype)


def fraction_below_one(owner: str, name: str, given: Any) -> Fraction:
    """Return the argument of `owner` as a fraction in (0, 1) whose digits exact arithmetic can store, or raise."""
    try:
        fraction = Fraction(given)
    except (TypeError, ValueError, ZeroDivisionError):
        raise ValueError(f"{owner}({name}={given!r}) must be a fraction such as Fraction(4, 5) or '4/5'") from None
    if not 0 < fraction < 1:
        raise ValueError(f"{owner}({name}={given!r}) must lie between 0 and 1, both excluded")
    if fraction.denominator > 1024:
        near = fraction.limit_denominator(16)
        raise ValueError(
            f"{owner}({name}={given!r}) is {fraction}, whose denominator is above 1024, and exact arithmetic stores "
            f"digits of that base: give the fraction that you mean, such as '{near}'"
        )
    return fraction


def _products(fraction: Fraction, capacity: int) -> int:
    """Number of products whose lost digits stay below `capacity`, whatever the values are."""
    n, d, largest, count = fraction.numerator, fraction.denominator, 0, 0
    while True:
        wide = largest * d + d - 1
        largest = wide // n
        if largest >= capacity or wide >= _WORD // 2:
            return count
        count += 1


class _ToGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.dtype, ctx.factor = value.dtype, factor
        return _integers(value, factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0].to(ctx.dtype) * ctx.factor, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0].double() * ctx.factor


class _Plus(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor, value: Tensor, factor: float) -> Tensor:
        ctx.dtype, ctx.factor = value.dtype, factor
        return _sum(base, value, factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], gradients[0].to(ctx.dtype) * ctx.factor, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        base, value, _ = tangents
        return base + value.double() * ctx.factor


class _Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, lost: Tensor, n: int, d: int) -> tuple[Tensor, Tensor]:
        ctx.ratio = n / d
        # divided by d / SCALE, not multiplied by its inverse: that would round, and floor could be off by one
        quotient = (value / (d / SCALE)).floor_()
        lost = (lost * d).add_(value.sub(quotient, alpha=d / SCALE), alpha=SCALE)
        if n > 1:
            after = (lost / n).floor_()
            quotient.mul_(n).add_(lost.sub_(after, alpha=n))
            lost = after
        ctx.mark_non_differentiable(lost)
        return quotient.mul_(1 / SCALE), lost

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.ratio, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0] * ctx.ratio, None
