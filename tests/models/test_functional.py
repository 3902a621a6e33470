"""rms_norm and gated_silu against their formulas, autograd's derivatives and finite differences."""

import pytest
import torch
from torch.nn import functional as F

from loopgrad.models import rms_norm
from loopgrad.models.functional import gated_silu

# torch itself scripts its forward-mode rules when they are first used, and torch 2.6's gradcheck calls its old vmap
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Please use `torch.vmap` instead:FutureWarning"),
]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dim", [-1, 1, 0])
def test_rms_norm_is_x_over_its_root_mean_square(dim):
    x = draw(2, 3, 5)
    expected = x / torch.sqrt((x**2).mean(dim, keepdim=True) + 1e-5)
    torch.testing.assert_close(rms_norm(x, dim), expected, rtol=1e-14, atol=0)


def test_rms_norm_equals_torch_rms_norm_in_float32():
    x = draw(4, 16, dtype=torch.float32)
    torch.testing.assert_close(rms_norm(x), F.rms_norm(x, (16,), eps=1e-5), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dim", [-1, 1])
def test_rms_norm_derivatives_agree_with_finite_differences(dim):
    x = draw(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, dim), x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: rms_norm(x, dim), x)


def test_rms_norm_in_bfloat16_takes_the_mean_in_float32():
    x = draw(3, 512, dtype=torch.float32).bfloat16()
    expected = F.rms_norm(x.float(), (512,), eps=1e-5)
    y = rms_norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected.bfloat16(), rtol=0, atol=0)
    x.requires_grad_()
    rms_norm(x).sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16


def test_gated_silu_is_silu_times_up_with_derivatives_of_finite_differences():
    gate, up = draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_()
    torch.testing.assert_close(gated_silu(gate, up), gate * torch.sigmoid(gate) * up, rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(gated_silu, (gate, up), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(gated_silu, (gate, up))


def test_functional_transforms_agree_with_autograd():
    x, tangent = draw(5), draw(5, seed=1)

    def fn(x):
        return gated_silu(rms_norm(x), x.sin())

    jacobian = torch.autograd.functional.jacobian(fn, x)
    torch.testing.assert_close(torch.func.jacrev(fn)(x), jacobian)
    torch.testing.assert_close(torch.func.jvp(fn, (x,), (tangent,))[1], jacobian @ tangent)
    rows = draw(3, 5, seed=2)
    torch.testing.assert_close(torch.vmap(fn)(rows), torch.stack([fn(row) for row in rows]))


def saved_bytes(fn):
    storages = {}

    def pack(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = fn()
    return sum(s.nbytes() for s in storages.values()), result


def test_backward_keeps_the_output_and_one_number_per_row():
    x = draw(8, 32, dtype=torch.float32).requires_grad_()
    saved, _ = saved_bytes(lambda: rms_norm(x * 2))
    assert saved == (8 * 32 + 8) * 4
    gate_up = draw(2, 8, 32, dtype=torch.float32).requires_grad_()
    saved, _ = saved_bytes(lambda: gated_silu(gate_up[0] * 2, gate_up[1] * 2))
    assert saved == 2 * 8 * 32 * 4
