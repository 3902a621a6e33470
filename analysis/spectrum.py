"""Whether a map contracts: eigenvalues and norm of its Jacobian, Lyapunov exponents along its orbit."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from loopgrad.analysis.state_map import StateMap
from loopgrad.analysis.summaries import band_of, screen

DENSE = 96  # features up to which the whole Jacobian is made


def eigenvalues(f: StateMap, z: Tensor, k: int = 6, tol: float = 1e-9) -> np.ndarray:
    """Return the k eigenvalues of largest modulus of the Jacobian of f at z, per sample, largest first.

    By Arnoldi's method (ARPACK through scipy) on products with J^T, whose eigenvalues are those of J; up to 96 features
    from the whole Jacobian. Never by a Rayleigh quotient, which for a complex pair r e^{+-i t} reports r cos t.

    Args:
        f: The map.
        z: (batch, n) points.
        k: How many, at most n.
        tol: Relative accuracy asked of ARPACK.

    Cost:
        About 2 k + 20 to some hundred products per sample.
    Not recommended when:
        J is far from normal and large: eigenvalues then say little about finite times; look at
        `operator_norm` and `lyapunov` too.
    Reference:
        Lehoucq et al. 1998.

    Returns:
        (batch, k) complex128.

    Raises:
        ValueError: k is not between 1 and n.
        ArpackNoConvergence: ARPACK gave up (scipy's).
    """
    batch, n = z.shape
    if not 1 <= k <= n:
        raise ValueError(f"k={k} must be between 1 and the number of features, {n}")
    if n <= max(DENSE, k + 2):
        found = torch.linalg.eigvals(f.jacobians(z)).cpu().numpy().astype(np.complex128)
    else:
        found = np.stack([_arnoldi(f.sample(i), z[i : i + 1], k, tol) for i in range(batch)])
    order = np.argsort(-np.abs(found), axis=1)[:, :k]
    return np.take_along_axis(found, order, axis=1)


def spectral_radius(f: StateMap, z: Tensor, tol: float = 1e-9) -> np.ndarray:
    """Return the largest modulus of an eigenvalue of the Jacobian of f at z, per sample, (batch,).

    Below one, z_{t+1} = f(z_t) returns to a fixed point z after a small push, at that rate per cycle in the long run.
    See `eigenvalues`.
    """
    return np.abs(eigenvalues(f, z, k=1, tol=tol)[:, 0])


def operator_norm(f: StateMap, z: Tensor, tol: float = 1e-9) -> np.ndarray:
    """Return the largest singular value of the Jacobian of f at z, per sample, (batch,).

    Below one, f contracts near z in one cycle. A norm above one with a spectral radius below one is a map that first
    pushes some differences apart.

    Args:
        f: The map.
        z: (batch, n) points.
        tol: Relative accuracy asked of ARPACK.

    Cost:
        Products with J and J^T, some dozens of each per sample.
    """
    batch, n = z.shape
    if n <= DENSE:
        return torch.linalg.matrix_norm(f.jacobians(z), 2).cpu().numpy().astype(np.float64)
    return np.array([_largest_singular(f.sample(i), z[i : i + 1], tol) for i in range(batch)])


class LyapunovExponents(NamedTuple):
    """Attributes: mean (batch, k), in nats per cycle, largest first; error, its standard error over blocks; state."""

    mean: np.ndarray
    error: np.ndarray
    state: Tensor

    def __repr__(self) -> str:
        """Say how large they are, and how sure."""
        batch, k = self.mean.shape
        title = f"LyapunovExponents of {batch} samples, nats per cycle; median [5 %, 95 %]"
        rows = [[str(i + 1), band_of(self.mean[:, i]), band_of(self.error[:, i])] for i in range(k)]
        return screen(title, ["rank", "mean", "error"], rows)


def lyapunov(
    f: StateMap, z: Tensor, num_steps: int, k: int = 1, transient: int = 0, blocks: int = 10, seed: int = 0
) -> LyapunovExponents:
    """Return the k largest finite-time Lyapunov exponents along the orbit of z: mean rates at which differences grow.

    Products with J of k vectors, made orthonormal again by QR at every step; the mean of log |R_ii|, in nats per
    application of f. Positive: chaos. The error is the standard deviation of means over blocks / sqrt(blocks), which
    takes correlation within a block into account; an exponent within about two errors of zero
    cannot be distinguished from it.

    Args:
        f: The map.
        z: (batch, n) where the orbits start.
        num_steps: Applications of f that are averaged over.
        k: Exponents, at most n.
        transient: Applications before those, during which the vectors already turn.
        blocks: For the error, at least 2; num_steps should be many times that.
        seed: Seed of the first vectors.

    Cost:
        (k + 1) evaluations of f per application, forward differentiation included.
    Reference:
        Benettin et al. 1980, Meccanica 15; Engelken 2023, arXiv 2312.17306.

    Raises:
        ValueError: k, blocks or num_steps is out of range.
    """
    batch, n = z.shape
    if not 1 <= k <= n or blocks < 2 or num_steps < blocks or transient < 0:
        raise ValueError(
            f"k={k} must be between 1 and {n}, blocks={blocks} at least 2, num_steps={num_steps} at least blocks, "
            f"transient={transient} at least 0"
        )
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(batch, n, k, generator=generator, dtype=torch.float64).to(z)
    basis, logs = torch.linalg.qr(basis)[0], []
    for step in range(transient + num_steps):
        z, products = f.push(z, *basis.unbind(dim=2))
        basis, r = torch.linalg.qr(torch.stack(products, dim=2))
        if step >= transient:
            logs.append(r.diagonal(dim1=1, dim2=2).abs().log())
    values = torch.stack(logs).double().cpu().numpy()  # (num_steps, batch, k)
    means = np.stack([block.mean(axis=0) for block in np.array_split(values, blocks)])
    return LyapunovExponents(values.mean(axis=0), means.std(axis=0, ddof=1) / blocks**0.5, z)


def _largest_singular(f: StateMap, point: Tensor, tol: float) -> float:
    with f.linearised(point) as pull:
        operator = _operator(point, lambda v: f.push(point, v)[1][0], pull)
        found = _found("svds", operator, k=1, tol=tol, return_singular_vectors=False)
    return float(torch.linalg.matrix_norm(f.jacobians(point), 2)[0]) if found is None else float(found[0])


def _arnoldi(f: StateMap, point: Tensor, k: int, tol: float) -> np.ndarray:
    with f.linearised(point) as pull:
        room = min(point.shape[1], max(2 * k + 1, 80))
        found = _found("eigs", _operator(point, pull), k=k, which="LM", tol=tol, ncv=room, return_eigenvectors=False)
    if found is None:
        found = torch.linalg.eigvals(f.jacobians(point))[0].cpu().numpy()
    return found[np.argsort(-np.abs(found))[:k]]


def _found(method: str, operator: Any, **options: Any) -> np.ndarray | None:
    """Return what ARPACK finds; None where the products of few vectors span all that there is (a multiple of 1)."""
    from scipy.sparse import linalg  # here: loading scipy changes the filters of warnings

    try:
        return getattr(linalg, method)(
            operator, v0=np.random.default_rng(0).standard_normal(operator.shape[0]), **options
        )
    except linalg.ArpackNoConvergence:
        raise
    except linalg.ArpackError:
        return None


def _operator(point: Tensor, product: Any, transposed: Any = None) -> Any:
    from scipy.sparse.linalg import LinearOperator

    def of_numpy(fn: Any) -> Any:
        def apply(v: np.ndarray) -> np.ndarray:
            row = torch.from_numpy(np.ascontiguousarray(v, dtype=np.float64).reshape(1, -1)).to(point)
            return fn(row).detach()[0].double().cpu().numpy()

        return fn and apply

    options: Any = {"matvec": of_numpy(product), "rmatvec": of_numpy(transposed), "dtype": np.float64}
    return LinearOperator((point.shape[1],) * 2, **options)
