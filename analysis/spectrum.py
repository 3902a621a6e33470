"""Whether a map contracts: eigenvalues and norm of its Jacobian, Lyapunov exponents along its orbit."""

from collections.abc import Callable
from contextlib import suppress
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
        (batch, k) complex128, nan where z, f(z) or the Jacobian is not finite.

    Raises:
        ValueError: k is not between 1 and n.
        ArpackNoConvergence: ARPACK gave up (scipy's).
    """
    n = z.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k={k} must be between 1 and the number of features, {n}")
    if n <= max(DENSE, k + 2):
        found = _of_whole(torch.linalg.eigvals, f, z, torch.complex128)
    else:
        found = _by_sample(lambda one, point: _arnoldi(one, point, k, tol), f, z)
    order = np.argsort(-np.abs(found), axis=1)[:, :k]
    return np.take_along_axis(found, order, axis=1)


def spectral_radius(f: StateMap, z: Tensor, tol: float = 1e-9) -> np.ndarray:
    """Return the largest modulus of an eigenvalue of the Jacobian of f at z, per sample, (batch,).

    Below one, z_{t+1} = f(z_t) returns to a fixed point z after a small push, at that rate per cycle in the long run.
    It is nan where z, f(z) or the Jacobian is not finite. See `eigenvalues`.
    """
    return np.abs(eigenvalues(f, z, k=1, tol=tol)[:, 0])


def operator_norm(f: StateMap, z: Tensor, tol: float = 1e-9) -> np.ndarray:
    """Return the largest singular value of the Jacobian of f at z, per sample, (batch,).

    Below one, f contracts near z in one cycle. A norm above one with a spectral radius below one is a map that first
    pushes some differences apart. It is nan where z, f(z) or the Jacobian is not finite.

    Args:
        f: The map.
        z: (batch, n) points.
        tol: Relative accuracy asked of ARPACK.

    Cost:
        Products with J and J^T, some dozens of each per sample.
    """
    if z.shape[1] <= DENSE:
        return _of_whole(_norms, f, z, torch.float64)[:, 0]
    return _by_sample(lambda one, point: _largest_singular(one, point, tol), f, z)[:, 0]


class LyapunovExponents(NamedTuple):
    """Attributes: mean (batch, k), in nats per cycle, largest first; error, its standard error over blocks; state.

    Mean and error are nan where the orbit or a product with the Jacobian did not stay finite.
    """

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
    cannot be distinguished from it. Both are nan where the orbit or a product with J does not stay finite.

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
    sound = _finite(z)
    for step in range(transient + num_steps):
        z, products = f.push(z, *basis.unbind(dim=2))
        sound &= _finite(z, *products)
        basis, r = torch.linalg.qr(torch.where(sound.view(-1, 1, 1), torch.stack(products, dim=2), 0.0))
        sound &= _finite(r)
        if step >= transient:
            logs.append(r.diagonal(dim1=1, dim2=2).abs().log())
    logs = torch.where(sound.unsqueeze(1), torch.stack(logs), torch.nan)
    values = logs.cpu().double().numpy()  # (num_steps, batch, k)
    means = np.stack([block.mean(axis=0) for block in np.array_split(values, blocks)])
    with np.errstate(invalid="ignore"):  # an exponent of -inf, of a constant, has no error
        errors = means.std(axis=0, ddof=1) / blocks**0.5
    return LyapunovExponents(values.mean(axis=0), errors, z)


class _LostError(ArithmeticError):
    """A product with the Jacobian is not finite."""


def _finite(*values: Tensor) -> Tensor:
    """Return (batch,), whether all numbers of a sample are finite."""
    return torch.stack([value.isfinite().flatten(1).all(dim=1) for value in values]).all(dim=0)


def _of_whole(fn: Callable[[Tensor], Tensor], f: StateMap, z: Tensor, dtype: torch.dtype) -> np.ndarray:
    """Return fn of the whole Jacobians, nan where there is none: LAPACK would refuse the batch, hang or crash."""
    jacobians = f.jacobians(z)
    sound = _finite(z, f(z), jacobians)
    found = fn(torch.where(sound.view(-1, 1, 1), jacobians, 0.0)).to(dtype)
    return torch.where(sound.unsqueeze(1), found, torch.nan).cpu().numpy()


def _norms(jacobians: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(jacobians, 2).unsqueeze(1)


def _by_sample(find: Callable[[StateMap, Tensor], np.ndarray], f: StateMap, z: Tensor) -> np.ndarray:
    """Return what is found for each sample, nan where it is lost: ARPACK would hang or crash."""
    found: list[Any] = [np.nan] * len(z)
    for i in _finite(z, f(z)).nonzero().flatten().tolist():
        with suppress(_LostError):
            found[i] = find(f.sample(i), z[i : i + 1])
    width = max((np.size(row) for row in found), default=1)
    return np.stack([np.broadcast_to(row, width) for row in found])


def _largest_singular(f: StateMap, point: Tensor, tol: float) -> np.ndarray:
    with f.linearised(point) as pull:
        products = {"matvec": lambda v: f.push(point, v)[1][0], "rmatvec": pull}
        found = _found("svds", point, products, k=1, tol=tol, return_singular_vectors=False)
    return _of_whole(_norms, f, point, torch.float64)[0] if found is None else found


def _arnoldi(f: StateMap, point: Tensor, k: int, tol: float) -> np.ndarray:
    with f.linearised(point) as pull:
        room = min(point.shape[1], max(2 * k + 1, 80))
        found = _found("eigs", point, {"matvec": pull}, k=k, which="LM", tol=tol, ncv=room, return_eigenvectors=False)
    if found is None:
        found = _of_whole(torch.linalg.eigvals, f, point, torch.complex128)[0]
    return found[np.argsort(-np.abs(found))[:k]]


def _found(
    method: str, point: Tensor, products: dict[str, Callable[[Tensor], Tensor]], **options: Any
) -> np.ndarray | None:
    """Return what ARPACK finds; None where the products of few vectors span all that there is (a multiple of 1).

    Vectors and products are scaled by powers of two, which rounds nothing: ARPACK squares the Jacobian, which may
    overflow although it is finite itself.

    Raises:
        _LostError: A product is not finite.
    """
    from scipy.sparse import linalg  # here: loading scipy changes the filters of warnings

    def scaled(fn: Callable[[Tensor], Tensor], size: float) -> Callable[[np.ndarray], np.ndarray]:
        def apply(v: np.ndarray) -> np.ndarray:
            length = _power(v)
            row = torch.from_numpy(np.asarray(v, dtype=np.float64).reshape(1, -1) / length).to(point)
            product = fn(row).detach()[0].cpu().double().numpy()
            if not np.isfinite(product).all():
                raise _LostError
            return product / size * length

        return apply

    n = point.shape[1]
    start = np.random.default_rng(0).standard_normal(n)
    size = _power(scaled(products["matvec"], 1.0)(start))
    operators: Any = {"dtype": np.float64, **{name: scaled(fn, size) for name, fn in products.items()}}
    operator = linalg.LinearOperator((n, n), **operators)
    try:
        return getattr(linalg, method)(operator, v0=start, **options) * size
    except linalg.ArpackNoConvergence:
        raise
    except linalg.ArpackError:
        return None


def _power(v: np.ndarray) -> float:
    """Return a power of two between one and four times sqrt(n) times the largest number of v; 1 for zeros."""
    exponent = sum(np.frexp([np.abs(v).max(), v.size**0.5])[1]) if v.any() else 0
    return 2.0 ** int(np.clip(exponent, -1000, 1000))
