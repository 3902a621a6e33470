"""The grid in int64 against the grid in float64, to the last bit, and against fractions of Python."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopgrad.gradients.forward_levels import ForwardLevels
from loopgrad.models.grid_arithmetic import SCALE, Ratio, plus, to_grid
from loopgrad.models.split_grid import LIMIT, Split

FACTORS = [
    1.0,
    0.5,
    0.8,
    -0.8,
    1 / 8,
    7 / 8,
    1 / 64,
    1 / 3,
    0.1,
    1023 / 1024,
    1e-3,
    1e-9,
    3.7,
    math.pi,
    1e5,
    1e30,
    3e38,
]
FACTORS += [1 + 2**-52, 2 - 2**-52, 1e-40, 1e-300, 1e40]
FRACTIONS = [Fraction(*pair) for pair in ((1, 2), (1, 5), (7, 8), (2, 3), (1, 1024), (1023, 1024))]


def split(value: torch.Tensor) -> Split:
    """The two parts of a tensor on the grid in float64."""
    head = value.float()
    return Split(head, ((value - head.double()) * SCALE).to(torch.int32))


def joined(value: Split) -> torch.Tensor:
    return value.head.double() + value.tail.double() / SCALE


def images(count: int, factor: float, seed: int = 0) -> torch.Tensor:
    """All bit patterns of float32 whose product is in range, many with few bits, many where the grid rounds."""
    generator = torch.Generator().manual_seed(seed)
    top = min(max(int(math.log2(2.0**18 / factor)) + 127, 1), 254)
    coarse = torch.randint(0, top + 1, (count,), generator=generator)
    rounded = torch.randint(max(top - 60, 0), top + 1, (count,), generator=generator)
    exponent = torch.where(torch.rand(count, generator=generator) < 0.3, coarse, rounded)
    kept = -1 << torch.randint(0, 24, (count,), generator=generator)
    significand = torch.randint(0, 2**23, (count,), generator=generator) & kept
    sign = torch.randint(-1, 1, (count,), generator=generator) << 31
    return (sign | (exponent << 23) | significand).to(torch.int32).view(torch.float32)


def bases(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    size = torch.empty(count, dtype=torch.float64).uniform_(-33, 19, generator=generator)
    sign = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    return to_grid(2**size * sign) / SCALE


def assert_same(mine: Split, true: torch.Tensor) -> None:
    assert mine.head.dtype == torch.float32 and mine.tail.dtype == torch.int32
    assert torch.equal(joined(mine), true) and torch.equal(mine.head, true.float())
    for low in (torch.bfloat16, torch.float16):
        assert torch.equal(mine.to(low), true.to(low))


def check_sums(count: int) -> None:
    base = bases(count)
    for factor in FACTORS:
        image = images(count, abs(factor))
        true = plus(base, image, factor)
        inside = true.abs() < 2.0**20
        assert inside.float().mean() > 0.95
        assert_same(split(base[inside]).plus(image[inside], factor), true[inside])
        assert_same(Split.of(image[image.abs() < 2.0**20]), to_grid(image[image.abs() < 2.0**20]) / SCALE)


def test_sums_with_products_are_those_of_float64():
    check_sums(2000)


@pytest.mark.slow
def test_sums_of_a_million_images_are_those_of_float64():
    check_sums(1_000_000)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.floats(min_value=1e-12, max_value=1e12))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_any_product_is_that_of_float64(value, factor):
    image = torch.tensor([value])
    true = to_grid(image, factor) / SCALE
    if abs(float(true)) < 2.0**20:
        assert_same(Split.of(torch.zeros(1)).plus(image, factor), true)


def test_halves_between_two_numbers_of_the_grid_go_to_the_even_one():
    odd = torch.arange(-9, 10, 2).float() * 2.0**-33
    base = torch.zeros(10)
    for factor in (1.0, 0.5, 4.0, -2.0):
        found = joined(Split.of(base).plus(odd / factor, factor)) * SCALE
        assert found.tolist() == [round(Fraction(i, 2)) for i in range(-9, 10, 2)]


def test_a_product_is_rounded_twice_as_in_float64():
    """Or the factors above would not tell: of these products the integer nearest to the exact one is another."""
    generator, factor = torch.Generator().manual_seed(0), math.pi / 4
    large = torch.rand(4000, generator=generator) * 2.0**19 + 2.0**19
    twice = [int(v * SCALE) for v in joined(Split.of(torch.zeros_like(large)).plus(large, factor)).tolist()]
    once = [round(Fraction(v) * Fraction(factor) * 2**32) for v in large.tolist()]
    assert twice == [round(v * (factor * SCALE)) for v in large.tolist()]
    assert 50 < sum(map(int.__ne__, twice, once)) < 2000


def test_tiny_zero_and_largest_values():
    image = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 2.0**-126, 2.0**-34, 2.0**20 - 2.0**-4, -(2.0**20) + 2.0**-4])
    for factor in (1.0, -1.0, 0.8):
        assert_same(Split.of(torch.zeros(8)).plus(image, factor), plus(torch.zeros(8).double(), image, factor))
    subnormal = torch.tensor([1e-45, -1e-41, 1.1e-38])
    assert_same(Split.of(torch.zeros(3)).plus(subnormal, 1e38), plus(torch.zeros(3).double(), subnormal, 1e38))
    assert not math.copysign(1, float(Split.of(torch.tensor([-0.0])).head)) < 0  # an integer has no negative zero


@pytest.mark.parametrize("fraction", FRACTIONS, ids=str)
def test_dampings_and_their_digits_are_those_of_float64_and_are_undone(fraction):
    ratio = Ratio.of(fraction)
    products = min(ratio.window, 40)
    value = start = bases(500)
    lost, mine = torch.zeros_like(value), split(value)
    digits = mine.digits()
    for _ in range(products):
        value, lost = ratio.times(value, lost)
        mine, digits = ratio.times(mine, digits)
        assert_same(mine, value)
        assert digits.dtype == torch.int64 and torch.equal(digits.double(), lost)
    assert torch.equal(ratio.pack(digits), ratio.pack(lost))
    digits = ratio.unpack(ratio.pack(digits), torch.int64)
    for _ in range(products):
        mine, digits = ratio.undo(mine, digits)
    assert_same(mine, start)
    assert not digits.any()


def test_sums_and_differences_of_two_on_the_grid():
    one, two = bases(500), bases(501)[1:]
    assert_same(split(one) + split(two), one + two)
    assert_same(split(one) - split(two), one - two)


def test_what_is_not_finite_stays_so_and_touches_no_neighbour():
    """Beyond the grid a value is a float32 without a rest, and one that comes back to the grid goes on from there."""
    image = torch.tensor([math.nan, math.inf, -math.inf, 1.0, 3e38, LIMIT])
    start = Split.of(torch.full((6,), 0.3))
    far = start.plus(image, 1.0)
    assert far.head.isnan().tolist() == [True] + [False] * 5
    assert far.head[1:].tolist() == [math.inf, -math.inf, float(torch.tensor(0.3) + 1), float(image[4]), LIMIT]
    assert far.tail.tolist()[:3] == [0, 0, 0] and far.tail.tolist()[4:] == [0, 0]
    for value in (
        far.times(far.digits(), Fraction(4, 5))[0],
        far + start,
        far - start,
        far.undo(far.digits(), Fraction(4, 5))[0],
    ):
        assert value.head.isfinite().tolist() == [False, False, False, True, value.head[4].isfinite(), True]
    assert (far - far).head.isnan().tolist() == [True, True, True, False, False, False]
    back = far.plus(image, -1.0)
    assert back.head[3] == start.head[3] and back.tail[3] == start.tail[3]
    assert back.head.isnan().tolist() == [True, True, True, False, False, False]
    for limb in far.limbs()[1:]:
        assert limb.isnan().tolist() == [True, True, True, False, False, False]


def test_limbs_sum_to_the_value():
    value = split(bases(500))
    assert torch.equal(sum(limb.double() for limb in value.limbs()), joined(value))


def test_derivatives_are_those_of_the_sum_and_the_product():
    base, image = torch.full((3,), 0.3, requires_grad=True), torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    split_base = Split.of(base)
    total = split_base.plus(image, 0.25) + split_base
    damped, _ = total.times(total.digits(), Fraction(7, 8))
    found = torch.autograd.grad((damped - split_base).head.sum(), [base, image])
    assert torch.equal(found[0], torch.full((3,), 0.75)) and torch.equal(found[1], torch.full((3,), 7 / 32))
    with ForwardLevels(), torch.autograd.forward_ad.dual_level(), torch.no_grad():
        dual = torch.autograd.forward_ad.make_dual(image.detach(), torch.ones(3))
        total = split_base.detach().plus(dual, 0.25) - split_base.detach()
        damped, _ = total.times(total.digits(), Fraction(7, 8))
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(damped.head).tangent, torch.full((3,), 7 / 32))
