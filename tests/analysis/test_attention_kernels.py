"""Spectra of cells with attention: any layout of its result, any thread, the kernels of torch left as they are."""

import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from loopgrad.analysis import StateMap, find_fixed_points, lyapunov, operator_norm, spectral_radius


class Attention(nn.Module):
    """Attention over tokens, its heads joined by `view`, `reshape` or `flatten`, or as one block."""

    def __init__(self, join, by_hand=False, causal=False):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.join, self.by_hand, self.causal = join, by_hand, causal

    def attend(self, q, k, v):
        if not self.by_hand:
            return scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if self.causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        return scores.softmax(-1) @ v

    def forward(self, state, inputs, step):
        q, k, v = self.qkv(state).view(*state.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        joined = self.join(self.attend(q, k, v).transpose(1, 2), state.shape)
        return torch.tanh(state / 2 + self.out(joined))


JOINS = {
    "view": lambda y, shape: y.view(shape),
    "reshape": lambda y, shape: y.reshape(shape),
    "flatten": lambda y, shape: y.flatten(2),
    "view of heads": lambda y, shape: y.view(shape[0], shape[1], -1),
}
Z = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("join", JOINS)
def test_spectra_are_those_of_attention_written_by_hand(join, causal):
    plain = StateMap(Attention(lambda y, shape: y.reshape(shape), True, causal), Z, None)
    f = StateMap(Attention(JOINS[join], causal=causal), Z, None)
    torch.testing.assert_close(f(f.point), plain(f.point))
    torch.testing.assert_close(f.jacobians(f.point), plain.jacobians(f.point))
    v = torch.randn(f.point.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(f.push(f.point, v)[1][0], plain.push(f.point, v)[1][0])
    np.testing.assert_allclose(spectral_radius(f, f.point), spectral_radius(plain, f.point))
    np.testing.assert_allclose(operator_norm(f, f.point), operator_norm(plain, f.point))
    np.testing.assert_allclose(lyapunov(f, f.point, 20).mean, lyapunov(plain, f.point, 20).mean, rtol=1e-8)


def test_a_search_goes_through_fused_attention():
    f = StateMap(Attention(JOINS["view"]), Z, None)
    found = find_fixed_points(f, f.point)
    assert found.found.all()
    torch.testing.assert_close(f(found.state), found.state, atol=1e-9, rtol=0)


def test_the_layers_of_torch_are_mapped_in_training_and_evaluation_mode():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, state, inputs, step):
            return 0.5 * self.layer(state)

    found = [spectral_radius(f := StateMap(Layer().train(mode), Z, None), f.point) for mode in (True, False)]
    np.testing.assert_allclose(*found)
    step = 1e-6
    f = StateMap(Layer(), Z, None)
    v = torch.randn(f.point.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    numeric = (f(f.point + step * v) - f(f.point - step * v)) / (2 * step)
    torch.testing.assert_close(f.push(f.point, v)[1][0], numeric, rtol=1e-6, atol=1e-8)


def flags():
    return [getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in ("flash", "math", "mem_efficient")]


def test_the_kernels_of_the_process_are_never_switched():
    before, seen, wrong = flags(), [], []
    cell = Attention(JOINS["view"])

    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def forward(self, state, inputs, step):
            seen.append(flags())
            return self.cell(state, inputs, step)

    f = StateMap(Looking(), Z, None)
    expected = lyapunov(f, f.point, 20).mean

    def work():
        for _ in range(3):
            wrong.append(not np.array_equal(lyapunov(StateMap(Looking(), Z, None), f.point, 20).mean, expected))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 9 and not any(wrong)
    assert all(one == before for one in seen) and flags() == before
