"""Grid arithmetic against exact integers and fractions of Python."""

import math
from fractions import Fraction

import pytest
import torch

from loopgrad.models.grid_arithmetic import SCALE, Ratio, to_grid

FRACTIONS = [Fraction(*pair) for pair in ((1, 2), (3, 4), (7, 8), (1, 5), (2, 3), (15, 16), (1, 1024), (1023, 1024))]
# the last takes as long as the others together
SOME = [*FRACTIONS[:-1], pytest.param(FRACTIONS[-1], marks=pytest.mark.slow)]


def drawn(count: int = 200, largest: float = 2.0**19) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = 10 ** torch.empty(count, dtype=torch.float64).uniform_(-9, math.log10(largest), generator=generator)
    sign = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    return to_grid(spread * sign) / SCALE


@pytest.mark.parametrize("fraction", SOME, ids=str)
def test_products_equal_those_of_integers_and_are_undone(fraction):
    ratio, n, d = Ratio.of(fraction), fraction.numerator, fraction.denominator
    value = start = drawn()
    lost = torch.zeros_like(value)
    integers, words = [int(v) for v in (value * SCALE).tolist()], [0] * len(value)
    for _ in range(ratio.window):
        value, lost = ratio.times(value, lost)
        for i, (integer, word) in enumerate(zip(integers, words, strict=True)):
            word = word * d + integer % d
            integers[i], words[i] = integer // d * n + word % n, word // n
    assert [int(v) for v in (value * SCALE).tolist()] == integers
    assert [int(w) for w in lost.tolist()] == words
    assert max(words) < 256**ratio.num_bytes
    lost = ratio.unpack(ratio.pack(lost))
    for _ in range(ratio.window):
        value, lost = ratio.undo(value, lost)
    assert torch.equal(value, start) and not lost.any()


@pytest.mark.parametrize("fraction", FRACTIONS, ids=str)
def test_stored_bits_are_near_what_is_lost(fraction):
    ratio = Ratio.of(fraction)
    bits = 8 * ratio.num_bytes / ratio.window
    lost = math.log2(1 / fraction)
    # a product loses a digit below d and hides one below n; a word holds whole products
    assert lost <= bits <= (1.25 * lost if fraction.denominator <= 16 else 1.5 * lost + 0.1)


def test_product_is_within_a_digit_of_the_real_one():
    for fraction in FRACTIONS:
        value = drawn()
        product = Ratio.of(fraction).times(value, torch.zeros_like(value))[0]
        assert ((product - value * float(fraction)).abs() * SCALE <= fraction.denominator).all()


def test_rounding_is_to_the_nearest_and_its_derivative_that_of_the_product():
    value = torch.tensor([0.3, -0.7, 1e5], dtype=torch.float64, requires_grad=True)
    rounded = to_grid(value, 0.25)
    assert rounded.tolist() == [float(round(Fraction(v) * 2**30)) for v in value.tolist()]
    (gradient,) = torch.autograd.grad(rounded.sum(), value)
    assert torch.equal(gradient, torch.full((3,), 0.25 * SCALE, dtype=torch.float64))


def test_what_is_not_finite_stays_so():
    value = torch.tensor([math.nan, math.inf, -math.inf, 1.0], dtype=torch.float64)
    assert to_grid(value).isfinite().tolist() == [False, False, False, True]
    for fraction in FRACTIONS:
        product = Ratio.of(fraction).times(value, torch.zeros(4, dtype=torch.float64))[0]
        assert product.isfinite().tolist() == [False, False, False, True]


def test_a_denominator_that_no_word_holds_is_refused():
    with pytest.raises(ValueError, match="bits"):
        Ratio.of(Fraction(1, 2**60))
