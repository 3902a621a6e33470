"""The floor that rounding leaves, against maps whose rounding is known."""

import numpy as np
import pytest
import torch

from loopgrad.analysis import rounding_error
from loopgrad.gradients import Stationary


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 2**-24), (torch.bfloat16, 2**-8)])
def test_one_rounding_of_a_factor_is_half_a_unit_in_the_last_place(dtype, eps):
    # 1 + 1/3 ulp: each product is rounded by at most half a unit, on average by eps / (2 sqrt 3) and more
    z = torch.rand(4, 4096, generator=torch.Generator().manual_seed(0)).to(dtype) + 1
    found = rounding_error(Stationary(lambda z, x: z * 1.1), z, None)
    assert found.shape == (4,) and (found < eps).all() and (found > eps / 8).all()


def test_a_map_without_rounding_has_none_and_streams_are_taken_together():
    state = {"a": torch.ones(2, 3), "b": torch.zeros(2, 5)}
    cell = Stationary(lambda z, x: {"a": z["a"] * 0.5, "b": z["b"]})
    assert (rounding_error(cell, state, None) == 0).all()


def test_weights_widen_and_are_put_back_and_autocast_counts():
    linear, x = torch.nn.Linear(64, 64), torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    cell = Stationary(lambda z, x: torch.tanh(linear(z)), parameters=linear)
    before = linear.weight.clone()
    plain = rounding_error(cell, x, None)
    exact = torch.tanh(linear.double()(x.double()))
    linear.float()
    own = torch.tanh(linear(x))
    np.testing.assert_allclose(plain, ((own - exact).norm(dim=1) / exact.norm(dim=1)).detach(), rtol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert (rounding_error(cell, x, None) > 100 * plain).all()
    assert torch.equal(linear.weight, before)


def test_a_cell_that_keeps_its_own_dtype_is_refused():
    with pytest.raises(TypeError, match="follow the dtype of its state"):
        rounding_error(Stationary(lambda z, x: (z * 0.5).float()), torch.ones(1, 2), None)
