"""Fixed points of known maps, stable and unstable, and ends of several starts."""

import numpy as np
import pytest
import torch

from loopgrad.analysis import StateMap, find_fixed_points, multistart
from loopgrad.gradients import Stationary


def mapped(fn, start, inputs=None):
    return StateMap(Stationary(fn), start.double(), inputs)


@pytest.mark.parametrize("r", [2.8, 3.2, 3.9, 4.0])
def test_the_logistic_map_has_its_fixed_point_stable_or_not(r):
    f = mapped(lambda z, x: r * z * (1 - z), torch.linspace(0.6, 0.8, 64).unsqueeze(1))
    found = find_fixed_points(f, f.point)
    assert found.found.all()
    assert found.state.numpy() == pytest.approx(np.full((64, 1), 1 - 1 / r), abs=1e-9)
    assert found.radius == pytest.approx(np.full(64, abs(2 - r)), abs=1e-7)


def test_the_henon_map_has_its_saddles():
    def henon(z, x):
        return torch.stack([1 - 1.4 * z[:, 0] ** 2 + z[:, 1], 0.3 * z[:, 0]], dim=1)

    f = mapped(henon, torch.tensor([[0.5, 0.2], [-1.0, -0.3]]))
    found = find_fixed_points(f, f.point)
    assert found.found.all() and (found.radius > 1).all()
    assert found.state[:, 0].numpy() == pytest.approx([0.631354477, -1.131354477], abs=1e-8)


def test_a_wide_network_is_solved_from_products_alone_and_the_distance_is_from_the_start():
    torch.manual_seed(0)
    w = 1.5 * torch.randn(120, 120).double() / 120**0.5  # chaotic from a generic start
    x = torch.randn(3, 120).double()
    f = mapped(lambda z, x: torch.tanh(z @ w.T + x), torch.zeros(3, 120), x)
    start = f.point
    for _ in range(100):
        start = f(start)
    found = find_fixed_points(f, start, max_products=121)
    image = f(found.state)
    residual = (image - found.state).norm(dim=1) / torch.maximum(found.state.norm(dim=1), start.norm(dim=1))
    assert found.residual == pytest.approx(residual.numpy(), abs=1e-9)
    assert found.distance == pytest.approx(((found.state - start).norm(dim=1) / start.norm(dim=1)).numpy())
    assert (np.isnan(found.radius) == ~found.found).all() and found.found.any()


def test_a_map_without_a_fixed_point_has_none():
    f = mapped(lambda z, x: z + 1, torch.zeros(4, 3) + 1)
    found = find_fixed_points(f, f.point)
    assert not found.found.any() and np.isnan(found.radius).all()


def test_starts_that_end_in_two_places_are_two_clusters_of_the_sample_concerned():
    gains = torch.tensor([[0.5], [3.0]]).double()  # one fixed point, three
    f = mapped(lambda z, x: torch.tanh(x * z), torch.ones(2, 1), gains)
    starts = torch.tensor([0.3, 2.0, -0.3, -1.0]).view(4, 1, 1).expand(4, 2, 1)
    found = multistart(f, starts, 200)
    assert found.clusters[1] == 2 and found.alignment[1] == pytest.approx(-1)
    assert found.spread[1] == pytest.approx(2) and found.end.shape == (4, 2, 1)
    settled = mapped(lambda z, x: 0.5 * z + x, torch.ones(2, 1), gains)
    assert (multistart(settled, starts, 100).clusters == 1).all()
    with pytest.raises(ValueError, match="two starts"):
        multistart(f, starts[:1], 3)


def test_a_fixed_point_at_zero_is_found():
    f = mapped(lambda z, x: 1.5 * torch.sin(z), torch.full((2, 3), 0.05))
    found = find_fixed_points(f, f.point)
    assert found.found.all() and found.radius == pytest.approx([1.5, 1.5])
    assert float(found.state.abs().max()) < 1e-10
