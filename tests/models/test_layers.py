"""Initial statistics, linear maps and attention against closed forms and torch's own modules."""

import math

import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from loopgrad.models import Embedding, Linear, SwiGLU, rms_norm, truncated_normal
from loopgrad.models.attention import Attention, Rotary, rotate
from loopgrad.models.blocks import MLPBlock
from loopgrad.models.layers import swiglu_inner_size


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_truncated_normal_has_the_distribution_of_scipy_rescaled_to_unit_std():
    sample = truncated_normal((200_000,), 0.3, generator()).double()
    scale = 0.3 / stats.truncnorm(-2, 2).std()
    assert abs(sample.std().item() / 0.3 - 1) < 0.005  # std error of the std is 0.0016 relative
    assert sample.abs().max().item() <= 2 * scale * (1 + 1e-6)
    distance, p = stats.kstest(sample.numpy(), stats.truncnorm(-2, 2, scale=scale).cdf)
    assert p > 0.01, distance


def test_truncated_normal_of_std_zero_is_zero():
    assert not truncated_normal((3, 4), 0.0, generator()).any()


def test_weights_depend_on_the_seed_alone_and_leave_the_global_generator_untouched():
    before = torch.get_rng_state()
    first, again, other = (SwiGLU(8, 4, generator(seed)).gate_up.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_linear_starts_with_std_one_over_root_fan_in_and_zero_bias():
    layer = Linear(400, 500, generator(), bias=True)
    assert abs(layer.weight.std().item() * math.sqrt(400) - 1) < 0.01
    assert layer.bias is not None and not layer.bias.any()


def test_linear_computes_in_the_dtype_of_its_input():
    layer = Linear(6, 3, generator(), bias=True)
    x = torch.randn(2, 6, generator=generator(1))
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=0, atol=0)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert layer(x.double()).dtype == torch.float64


def test_split_equals_the_parts_of_the_whole_product():
    layer = Linear(6, 9, generator())
    x = torch.randn(2, 5, 6, generator=generator(1)).transpose(0, 1)
    parts = layer.split(x, [2, 7])
    torch.testing.assert_close(torch.cat(parts, -1), layer(x))
    assert [part.untyped_storage().nbytes() // 4 for part in parts] == [2 * 10, 7 * 10]


def test_embedding_looks_up_rows():
    table = Embedding(5, 3, 1.0, generator())
    ids = torch.tensor([[4, 0], [2, 2]])
    assert torch.equal(table(ids), table.weight[ids])


@pytest.mark.parametrize(("size", "expansion", "inner"), [(512, 4, 1536), (128, 4, 512), (81, 4, 256), (97, 4, 512)])
def test_swiglu_inner_size_is_two_thirds_rounded_up_to_256(size, expansion, inner):
    assert swiglu_inner_size(size, expansion) == inner


def test_swiglu_is_its_formula():
    layer = SwiGLU(6, 4, generator()).double()
    x = torch.randn(3, 6, generator=generator(1), dtype=torch.float64)
    gate, up = layer.gate_up.weight[:256] @ x.T, layer.gate_up.weight[256:] @ x.T
    expected = (layer.down.weight @ (gate / (1 + torch.exp(-gate)) * up)).T
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_rotary_is_multiplication_by_a_unit_complex_number():
    x = torch.randn(2, 7, 3, 8, generator=generator(), dtype=torch.float64)
    pairs = torch.complex(x[..., :4], x[..., 4:])
    position = torch.arange(7, dtype=torch.float64)
    angle = position[:, None] * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turned = pairs * torch.polar(torch.ones_like(angle), angle)[:, None]
    expected = torch.cat((turned.real, turned.imag), -1)
    # the tables are float32
    torch.testing.assert_close(rotate(x, Rotary(8, 7)(7)).double(), expected, rtol=0, atol=2e-6)


def test_rotary_scores_depend_on_the_difference_of_positions_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator())
    tables = Rotary(8)(12)
    q, k = rotate(q.expand(1, 12, 1, 8), tables)[0, :, 0], rotate(k.expand(1, 12, 1, 8), tables)[0, :, 0]
    scores = q @ k.T
    for shift in range(-11, 12):
        diagonal = scores.diagonal(shift)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
    assert (scores[0] - scores[0, 0]).abs().max() > 0.1  # and do depend on it


def test_rotary_tables_beyond_the_stored_length_are_the_same():
    for short, long in zip(Rotary(6, 3)(9), Rotary(6, 20)(9), strict=True):
        assert torch.equal(short, long)


def test_rotary_refuses_odd_heads():
    with pytest.raises(ValueError, match="head of size 5 is odd"):
        Rotary(5)


@pytest.mark.parametrize("turned", [False, True])
def test_attention_is_softmax_of_scaled_products(turned):
    layer = Attention(8, 2, generator()).double()
    x = torch.randn(2, 5, 8, generator=generator(1), dtype=torch.float64)
    tables = tuple(t.double() for t in Rotary(4, 5)(5)) if turned else None
    q, k, v = ((x @ layer.qkv.weight.T)[..., i * 8 : (i + 1) * 8].view(2, 5, 2, 4) for i in range(3))
    if tables is not None:
        q, k = rotate(q, tables), rotate(k, tables)
    mixed = torch.zeros(2, 5, 2, 4, dtype=torch.float64)
    for b in range(2):
        for head in range(2):
            weights = torch.softmax(q[b, :, head] @ k[b, :, head].T / 2, -1)
            mixed[b, :, head] = weights @ v[b, :, head]
    expected = mixed.reshape(2, 5, 8) @ layer.out.weight.T
    torch.testing.assert_close(layer(x, tables), expected, rtol=1e-12, atol=1e-12)


def test_attention_without_positions_commutes_with_permutations_and_rotary_breaks_it():
    layer, tables = Attention(8, 2, generator()), Rotary(4, 6)(6)
    x, order = torch.randn(1, 6, 8, generator=generator(1)), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], rtol=1e-5, atol=1e-6)
    assert (layer(x[:, order], tables) - layer(x, tables)[:, order]).abs().max() > 1e-3


def test_attention_refuses_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="num_heads must divide hidden_size, got num_heads=3, hidden_size=8"):
        Attention(8, 3, generator())


def test_mlp_block_mixes_and_normalises_over_positions_then_features():
    block = MLPBlock(4, 6, 4, generator()).double()
    h = torch.randn(2, 6, 4, generator=generator(1), dtype=torch.float64)
    mixed = torch.stack([block.token_mlp(h[..., i]) for i in range(4)], -1)
    middle = h + mixed
    middle = middle / torch.sqrt((middle**2).mean(1, keepdim=True) + 1e-5)
    expected = rms_norm(middle + block.mlp(middle))
    torch.testing.assert_close(block(h), expected, rtol=1e-12, atol=1e-12)
