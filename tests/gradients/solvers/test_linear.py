"""Linear solvers against dense solves, and what they must survive: breakdowns, numbers that are none, zero rows."""

import pytest
import torch

from loopgrad.gradients.live_bytes import PeakBytes
from loopgrad.gradients.solvers import LINEAR, by_iteration, gcr, gmres
from loopgrad.gradients.solvers.fixed_point import Broyden

EXACT = {"gcr", "gmres", "bicgstab", "anderson", "broyden"}
SOLVERS = {**LINEAR, "broyden": by_iteration(Broyden())}
every_solver = pytest.mark.parametrize("name", SOLVERS)


def systems(rows=5, size=12, radius=0.8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    matrices = torch.randn(rows, size, size, generator=generator, dtype=torch.float64)
    matrices *= (radius / torch.linalg.eigvals(matrices).abs().amax(dim=1)).view(-1, 1, 1)
    b = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    exact = torch.linalg.solve(torch.eye(size).double() - matrices.mT, b)
    return matrices.to(dtype), b.to(dtype), exact


def puller(matrices):
    return lambda v: torch.einsum("rij,ri->rj", matrices, v)


def solve(name, matrices, b, rtol, max_vjps, check_every=4):
    return SOLVERS[name](puller(matrices), b, rtol * b.norm(dim=1), max_vjps, check_every)


@every_solver
@pytest.mark.parametrize(("dtype", "rtol", "bound"), [(torch.float64, 1e-10, 1e-8), (torch.float32, 1e-4, 2e-3)])
def test_equals_the_dense_solve_within_the_tolerance(name, dtype, rtol, bound):
    matrices, b, exact = systems(dtype=dtype)
    found = solve(name, matrices, b, rtol, 300)
    true = b - (found.solution - puller(matrices)(found.solution))
    assert (found.residual <= rtol * b.norm(dim=1)).all() and found.vjps < 300
    assert (true.norm(dim=1) <= 2 * rtol * b.norm(dim=1)).all(), "the residual that is returned is not the true one"
    assert ((found.solution - exact).norm(dim=1) <= bound * exact.norm(dim=1)).all()


@pytest.mark.parametrize("name", ["gcr", "gmres"])
def test_a_krylov_method_ends_after_as_many_products_as_there_are_unknowns(name):
    matrices, b, exact = systems(size=7, radius=3.0)  # no series converges here
    found = solve(name, matrices, b, 1e-9, 20, check_every=1)
    assert found.vjps == 7
    torch.testing.assert_close(found.solution, exact, rtol=1e-7, atol=1e-8)


def test_gcr_and_gmres_have_the_same_residuals_and_they_are_least():
    matrices, b, _ = systems(size=30, radius=0.95)
    for k in (1, 3, 8, 15):
        left = [solve(name, matrices, b, 0, k).residual for name in ("gcr", "gmres", "anderson", "neumann")]
        torch.testing.assert_close(left[0], left[1], rtol=1e-8, atol=1e-10)
        assert all((left[0] <= other * (1 + 1e-9)).all() for other in left[2:])


def test_gcr_keeps_one_vector_per_product():
    matrices, b, _ = systems(rows=4, size=400, radius=0.95, dtype=torch.float32)
    peaks = []
    for k in (17, 33):
        with PeakBytes() as bytes_:
            solve("gcr", matrices, b, 0, k, check_every=None)
        peaks.append(bytes_.peak)
    vector, columns = b.nbytes, 4 * len(b) * sum(range(16, 34))
    assert 16 * vector <= peaks[1] - peaks[0] <= 16 * vector + 2 * columns


@every_solver
def test_going_on_after_the_end_does_no_harm(name):
    matrices, b, exact = systems(size=5)
    found = solve(name, matrices, b, 0, 60, check_every=None)
    assert found.vjps == 60 and found.solution.isfinite().all()
    tolerance = 1e-8 if name in EXACT else 1e-4
    torch.testing.assert_close(found.solution, exact, rtol=tolerance, atol=tolerance)


@every_solver
def test_rows_do_not_see_each_other(name):
    matrices, b, _ = systems()
    matrices[1] *= torch.nan
    matrices[2] *= 1e200
    b[3] = 0
    found = solve(name, matrices, b, 1e-8, 200)
    alone = solve(name, matrices[[0, 4]], b[[0, 4]], 1e-8, 200)
    torch.testing.assert_close(found.solution[[0, 4]], alone.solution, rtol=1e-6, atol=1e-7)
    assert not found.solution[3].any() and found.residual[3] == 0
    assert found.solution[1].isfinite().all()


@every_solver
def test_the_first_product_is_that_of_the_right_hand_side(name):
    matrices, b, _ = systems()
    seen = []

    def pull(v):
        seen.append(v.clone())
        return puller(matrices)(v)

    SOLVERS[name](pull, b, 0 * b[:, 0], 2, None)
    direction = torch.nn.functional.cosine_similarity(seen[0], b)
    torch.testing.assert_close(direction, torch.ones_like(direction))


@pytest.mark.parametrize("solver", [gcr, gmres])
def test_float32_does_not_stall_above_its_floor(solver):
    """A residual taken as sqrt(|b|^2 - |g|^2) would floor at 3e-4 here."""
    matrices, b, _ = systems(rows=8, size=64, radius=0.9, dtype=torch.float32)
    found = solver(puller(matrices), b, 1e-5 * b.norm(dim=1), 60, 4)
    assert found.vjps < 60 and (found.residual <= 1e-5 * b.norm(dim=1)).all()
