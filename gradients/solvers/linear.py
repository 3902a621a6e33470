"""Solvers of w - J^T w = b, row by row, that see J^T through its products alone."""

import torch
from torch import Tensor
from torch.linalg import vector_norm

from loopgrad.gradients.solvers.fixed_point import Anderson, Iteration
from loopgrad.gradients.solvers.protocol import FixedPointSolver, LinearSolution, LinearSolver, Map
from loopgrad.gradients.wide import in_float64


class _Basis:
    """Vectors of each row, in blocks of a few: growing copies nothing, and small products are slow on CPU."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []  # (rows, room, features), zeros where there is no vector yet
        self._count = 0

    def append(self, vector: Tensor) -> None:
        if self._count == sum(block.shape[1] for block in self._blocks):
            room = 8 if self._count >= 8 else 4
            self._blocks.append(vector.new_zeros(len(vector), room, vector.shape[1]))
        place = self._count - sum(block.shape[1] for block in self._blocks[:-1])
        self._blocks[-1][:, place] = vector
        self._count += 1

    def along(self, vector: Tensor) -> Tensor:
        """Return the products with all vectors, (rows, 1, room)."""
        parts = [vector.unsqueeze(1) @ block.mT for block in self._blocks]
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]

    def minus(self, vector: Tensor, factors: Tensor) -> Tensor:
        """Return vector - sum_i factors_i vector_i, for factors (rows, 1, count or more)."""
        rest, start = vector.unsqueeze(1), 0
        for block in self._blocks:
            part = factors[:, :, start : start + block.shape[1]]
            rest = torch.baddbmm(rest, part, block[:, : part.shape[2]], alpha=-1)
            start += block.shape[1]
        return rest.squeeze(1)

    def orthogonal(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return the part of a vector that is orthogonal to all others, and its products with them."""
        along = self.along(vector)
        rest = self.minus(vector, along)
        again = self.along(rest)  # one pass leaves what rounding has spoilt
        return self.minus(rest, again), along + again


def gcr(pull: Map, b: Tensor, tolerance: Tensor, max_vjps: int, check_every: int | None) -> LinearSolution:
    """Generalised conjugate residuals: the least residual of all polynomial methods, and it is at hand at each step.

    Keeps one vector per product: the images (1 - J^T) r_k are made orthonormal, and the residuals r_k that they are
    images of are known through them, r_k = b - sum_{i<=k} s_i q_i. A row that meets a number that is not finite gets
    w = 0.

    Reference:
        Eisenstat et al. 1983, SIAM J. Numer. Anal. 20(2); Jiranek et al. 2008, SIAM J. Matrix Anal.
        Appl. 30(4) (without the directions).
    """
    r, spared = b, 100 * torch.finfo(b.dtype).eps
    images, columns, steps, scales = _Basis(), [], [], []
    for vjps in range(1, max_vjps + 1):
        q = r - pull(r)
        norm, least = vector_norm(q, dim=1, keepdim=True), 0.0
        if vjps > 1:
            least = spared * norm
            q, along = images.orthogonal(q)
            columns.append(along)
            norm = vector_norm(q, dim=1, keepdim=True)
        scale = torch.where(norm > least, 1 / norm, 0.0)  # else nothing but rounding is left of q
        q = q * scale
        step = torch.linalg.vecdot(r, q).unsqueeze(1)
        r = torch.addcmul(r, step, q, value=-1)
        steps.append(step)
        scales.append(scale)
        if vjps == max_vjps:
            residual, w = vector_norm(r, dim=1), _combined(b, images, columns, steps, scales)
            lost = ~(residual < torch.inf)
            w = torch.where(lost.unsqueeze(1), 0.0, w)
            return LinearSolution(w, torch.where(lost, vector_norm(b, dim=1), residual), vjps)
        if check_every and vjps % check_every == 0:
            residual = vector_norm(r, dim=1)
            if bool((residual <= tolerance).all()):
                return LinearSolution(_combined(b, images, columns, steps, scales), residual, vjps)
        images.append(q)
    raise ValueError(f"max_vjps={max_vjps} must be at least 1")


def _combined(b: Tensor, images: _Basis, columns: list[Tensor], steps: list[Tensor], scales: list[Tensor]) -> Tensor:
    """Return w = sum_k y_k r_k whose image is sum_k s_k q_k: back substitution, then r_k = b - sum_{i<=k} s_i q_i."""
    left = torch.cat(steps, dim=1)
    total, factors = left[:, -1:] * scales[-1], []
    y = total
    for k in range(len(steps) - 1, 0, -1):
        factors.append(total * steps[k - 1])
        left = torch.addcmul(left[:, :k], columns[k - 1][:, 0, :k], y, value=-1)
        y = left[:, -1:] * scales[k - 1]
        total = total + y
    if not factors:
        return b * total
    return images.minus(b * total, torch.stack(factors[::-1], dim=2))


def gmres(pull: Map, b: Tensor, tolerance: Tensor, max_vjps: int, check_every: int | None) -> LinearSolution:
    """Generalised minimal residuals: the least residual of all polynomial methods, with one vector per product.

    Reference:
        Saad and Schultz 1986, SIAM J. Sci. Stat. Comput. 7(3).
    """
    norm = b.norm(dim=1)
    v = b / torch.where(norm > 0, norm, 1.0).unsqueeze(1)
    basis, columns = _Basis(), []
    for vjps in range(1, max_vjps + 1):
        basis.append(v)
        q, along = basis.orthogonal(v - pull(v))
        column = along[:, 0, :vjps]
        size = q.norm(dim=1, keepdim=True)
        finite = size < torch.inf
        sound = (size > 4 * torch.finfo(b.dtype).eps * column.norm(dim=1, keepdim=True)) & finite
        size, column = torch.where(sound, size, 0.0), torch.where(finite, column, 0.0)
        columns.append(torch.cat([column, size], dim=1))
        v = torch.where(sound, q / size, 0.0)
        if vjps == max_vjps or (check_every and vjps % check_every == 0):
            y, residual = _smallest(columns, norm)
            if vjps == max_vjps or bool((residual <= tolerance).all()):
                return LinearSolution(-basis.minus(torch.zeros_like(b), y.unsqueeze(1)), residual, vjps)
    raise ValueError(f"max_vjps={max_vjps} must be at least 1")


def _smallest(columns: list[Tensor], norm: Tensor) -> tuple[Tensor, Tensor]:
    """Return y (rows, k) with |norm e_1 - H y| least, and that least value, in float64: H is small."""
    k = len(columns)
    matrix = torch.stack([torch.nn.functional.pad(c, (0, k + 1 - c.shape[1])) for c in columns], dim=2)
    y, left = in_float64(_least, matrix, norm)
    return y.to(norm.dtype), left.to(norm.dtype)


def _least(matrix: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    q, r = torch.linalg.qr(matrix)
    diagonal = r.diagonal(dim1=1, dim2=2)
    spent = diagonal.abs() <= 1e-14 * diagonal.abs().amax(dim=1, keepdim=True)  # the row had broken down by then
    diagonal += spent.to(r.dtype)
    right = q[:, 0].masked_fill(spent, 0).unsqueeze(2) * norm.view(-1, 1, 1)
    y = torch.linalg.solve_triangular(r, right, upper=True)
    left = -(matrix @ y)
    left[:, 0, 0] += norm
    return y.squeeze(2), left.norm(dim=1).squeeze(1)


def bicgstab(pull: Map, b: Tensor, tolerance: Tensor, max_vjps: int, check_every: int | None) -> LinearSolution:
    """Stabilised biconjugate gradients: two products and a fixed handful of vectors per step.

    Its residual may rise on the way; the best point at a look is kept.

    Reference:
        van der Vorst 1992, SIAM J. Sci. Stat. Comput. 13(2).
    """
    w, r, p, shadow, vjps = torch.zeros_like(b), b, b, b, 0
    rho = _dot(shadow, r)
    best, lowest = w, b.norm(dim=1)
    while vjps + 2 <= max_vjps:
        v = p - pull(p)
        alpha, sound = _ratio(rho, _dot(shadow, v))
        s = r - alpha * v
        t = s - pull(s)
        vjps += 2
        omega, _ = _ratio(_dot(t, s), _dot(t, t))
        ahead, left = w + alpha * p + omega * s, s - omega * t
        good = sound & ahead.isfinite().all(dim=1, keepdim=True) & left.isfinite().all(dim=1, keepdim=True)
        w, r = torch.where(good, ahead, w), torch.where(good, left, r)
        after = _dot(shadow, r)
        first, on = _ratio(after, rho)
        second, also = _ratio(alpha, omega)
        good &= on & also
        p = torch.where(good, r + first * second * (p - omega * v), torch.zeros_like(p))
        rho = torch.where(good, after, torch.zeros_like(after))
        looks = check_every and vjps // 2 % max(1, check_every // 2) == 0
        if looks or vjps + 2 > max_vjps:
            norm = r.norm(dim=1)
            better = norm < lowest
            best, lowest = torch.where(better.unsqueeze(1), w, best), torch.where(better, norm, lowest)
            if looks and vjps + 2 <= max_vjps and bool((lowest <= tolerance).all()):
                break
    return LinearSolution(best, lowest, vjps)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=1, keepdim=True)


def _ratio(numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
    """Return the quotient, 0 where it is none, and where it is one."""
    sound = (denominator.abs() > torch.finfo(denominator.dtype).tiny) & numerator.isfinite() & denominator.isfinite()
    return torch.where(sound, numerator / torch.where(sound, denominator, 1.0), 0.0), sound


def by_iteration(search: FixedPointSolver) -> LinearSolver:
    """Return the linear solver that searches for the fixed point of w -> b + J^T w, from w = b."""

    def solve(pull: Map, b: Tensor, tolerance: Tensor, max_vjps: int, check_every: int | None) -> LinearSolution:
        found = search(lambda w: b + pull(w), b, max_vjps, atol=tolerance, check_every=check_every)
        lost = ~found.residual.isfinite()
        solution = torch.where(lost.unsqueeze(1), torch.zeros_like(b), found.state)
        return LinearSolution(solution, torch.where(lost, b.norm(dim=1), found.residual), found.evaluations)

    return solve


neumann = by_iteration(Iteration())
anderson = by_iteration(Anderson())
LINEAR: dict[str, LinearSolver] = {
    "gcr": gcr,
    "gmres": gmres,
    "bicgstab": bicgstab,
    "neumann": neumann,
    "anderson": anderson,
}
