"""Plain attention: values and strides of the kernel that it stands for, and the derivatives which that one lacks."""

import pytest
import torch
from torch.func import jvp, vmap
from torch.nn import functional

from loopgrad.gradients.plain_attention import PlainAttention


def heads(layout: str) -> list[torch.Tensor]:
    """Queries, keys and values as models make them: three projections, one projection cut up, or heads first."""
    draw = torch.Generator().manual_seed(0)
    if layout == "cut":
        qkv = torch.randn(2, 5, 3, 4, 6, generator=draw, dtype=torch.float64)
        return list(qkv.permute(2, 0, 3, 1, 4))
    parts = [torch.randn(2, 5, 4, 6, generator=draw, dtype=torch.float64) for _ in range(3)]
    return [p.transpose(1, 2) if layout == "apart" else p.transpose(1, 2).contiguous() for p in parts]


@pytest.mark.parametrize("layout", ["apart", "cut", "heads first"])
@pytest.mark.parametrize("causal", [False, True])
def test_values_and_strides_are_those_of_the_usual_kernel(layout, causal):
    q, k, v = heads(layout)
    usual = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    with PlainAttention():
        plain = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    torch.testing.assert_close(plain, usual, rtol=1e-12, atol=1e-12)
    assert plain.stride() == usual.stride()


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_mask_leaves_out_what_the_usual_kernel_leaves_out(kind):
    q, k, v = heads("apart")
    mask = torch.tensor([True, True, False, True, False])[None, None, None]
    if kind == "float":
        mask = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    usual = functional.scaled_dot_product_attention(q, k, v, mask)
    with PlainAttention():
        plain = functional.scaled_dot_product_attention(q, k, v, mask)
    alone = functional.scaled_dot_product_attention(q, *(it[:, :, [0, 1, 3]] for it in (k, v)))
    torch.testing.assert_close(plain, usual, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(plain, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, at its first use
@pytest.mark.parametrize("layout", ["apart", "cut"])
def test_a_cell_that_views_the_result_carries_tangents(layout):
    q, k, v = heads(layout)
    tangents = torch.randn(3, *q.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def seen(q):
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).view(2, 5, 24)

    with PlainAttention():
        found = vmap(lambda u: jvp(seen, (q,), (u,))[1])(tangents)
    for u, pushed in zip(tangents, found, strict=True):
        slope = (seen(q + 1e-6 * u) - seen(q - 1e-6 * u)) / 2e-6
        torch.testing.assert_close(pushed, slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("need_weights", [False, True])
def test_multi_head_attention_has_second_derivatives(need_weights):
    torch.manual_seed(0)
    mha, x = torch.nn.MultiheadAttention(8, 2, dtype=torch.float64), torch.randn(3, 2, 8, dtype=torch.float64)
    usual, weights = mha(x, x, x, need_weights=need_weights)
    with PlainAttention():
        plain, found = mha(x, x, x, need_weights=need_weights)
        assert torch.autograd.gradgradcheck(
            lambda x: mha(x, x, x, need_weights=need_weights)[0], x.requires_grad_(), atol=1e-6
        )
    torch.testing.assert_close(plain, usual)
    assert (found is None) == (weights is None)
