"""Searches for fixed points: known answers, the visited point of lowest residual, and rows that are lost."""

import pytest
import torch

from loopgrad.gradients.solvers import Anderson, Broyden, Iteration

pytestmark = pytest.mark.usefixtures("float64")

SEARCHES = [
    Iteration(),
    Iteration(damping=0.6),
    Anderson(),
    Anderson(depth=3, damping=0.8),
    Broyden(),
    Broyden(depth=4),
]
every_search = pytest.mark.parametrize("search", SEARCHES, ids=str)


@every_search
def test_finds_the_dottie_number(search):
    found = search(torch.cos, torch.tensor([[0.0], [2.0], [-5.0]]), max_evaluations=200, rtol=1e-10)
    torch.testing.assert_close(found.state, torch.full((3, 1), 0.7390851332151607), rtol=1e-9, atol=0)
    assert found.converged.all() and found.evaluations < 200


@every_search
def test_returns_the_visited_point_of_lowest_residual_and_where_it_was(search):
    torch.manual_seed(0)
    w, visited = 1.5 * torch.randn(6, 6), []

    def fn(z):
        visited.append(z.clone())
        return torch.tanh(z @ w) + 0.1

    found = search(fn, torch.randn(4, 6), max_evaluations=25)
    points = torch.stack(visited)
    residuals = torch.stack([(torch.tanh(z @ w) + 0.1 - z).norm(dim=1) for z in visited])
    lowest = residuals.min(dim=0)
    torch.testing.assert_close(found.residual, lowest.values)
    assert torch.equal(found.found_at, lowest.indices)
    assert torch.equal(found.state, points[lowest.indices, torch.arange(4)])
    assert found.evaluations == 25 and not found.converged.any()


@every_search
def test_a_row_that_is_lost_keeps_its_best_and_stops_nobody(search):
    def fn(z):
        cliff = torch.where(z[1] > 3, torch.nan, z[1] + 5)
        return torch.stack([torch.cos(z[0]), cliff, torch.full_like(z[2], torch.nan), torch.cos(z[3])])

    found = search(fn, torch.tensor([[0.0], [2.0], [0.0], [1.0]]), max_evaluations=300, rtol=1e-9)
    assert found.converged.tolist() == [True, False, False, True]
    assert found.state.isfinite().all() and found.residual[1:3].tolist() == [5, torch.inf]
    assert found.evaluations < 300, "rows that are lost kept the search going"


@every_search
def test_the_scale_of_the_problem_changes_nothing(search):
    torch.manual_seed(0)
    w, c = 0.3 * torch.randn(5, 5), torch.randn(3, 5)
    one = search(lambda z: z @ w + c, torch.zeros(3, 5), 30, rtol=1e-6)
    tiny = search(lambda z: z @ w + 1e-7 * c, torch.zeros(3, 5), 30, rtol=1e-6)
    assert one.evaluations == tiny.evaluations
    torch.testing.assert_close(tiny.state * 1e7, one.state, rtol=1e-4, atol=1e-6)


def test_acceleration_takes_fewer_evaluations_on_a_slow_linear_map():
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(20, 20, generator=generator))[0]
    w = rotation @ torch.diag(torch.linspace(-0.5, 0.97, 20)) @ rotation.T
    c = torch.randn(4, 20, generator=generator)
    counts = {
        str(s): s(lambda z: z @ w + c, torch.zeros(4, 20), 2000, rtol=1e-6, check_every=1).evaluations
        for s in (Iteration(), Anderson(), Broyden(depth=40))
    }
    plain, anderson, broyden = counts.values()
    assert anderson < plain / 3 and broyden < plain / 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: Iteration(0),
        lambda: Iteration(1.5),
        lambda: Anderson(depth=1),
        lambda: Anderson(damping=0),
        lambda: Anderson(regularisation=-1),
        lambda: Broyden(0),
        lambda: Iteration()(torch.cos, torch.zeros(1, 1), 0),
    ],
)
def test_wrong_choices_are_refused(make):
    with pytest.raises(ValueError, match=r"must be|needs"):
        make()
