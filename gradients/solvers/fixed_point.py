"""Searches for z = fn(z), row by row: plain and damped iteration, Anderson acceleration, Broyden's method."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from loopgrad.gradients.solvers.protocol import FixedPoint, Map
from loopgrad.gradients.wide import in_float64


class _Search:
    """What every search keeps: the best point of each row, and whether to go on."""

    def __init__(
        self, fn: Map, start: Tensor, max_evaluations: int, rtol: float, atol: Tensor | float, every: int | None
    ):
        if max_evaluations < 1:
            raise ValueError(f"max_evaluations={max_evaluations} must be at least 1")
        self._fn, self._limit, self._rtol, self._atol, self._every = fn, max_evaluations, rtol, atol, every
        rows = start.shape[0]
        self.evaluations = 0
        self.best = start.clone()
        self.residual = start.new_full((rows,), torch.inf)
        self.found_at = torch.zeros(rows, dtype=torch.int64, device=start.device)
        self.converged = torch.zeros(rows, dtype=torch.bool, device=start.device)
        self.alive = torch.ones(rows, dtype=torch.bool, device=start.device)
        self.estimate: tuple[Tensor, Tensor] | None = None

    def evaluate(self, z: Tensor) -> tuple[Tensor, bool]:
        """Return the step fn(z) - z, zero in rows that are lost, and whether the search is over."""
        image = self._fn(z)
        step = image - z
        norm = step.norm(dim=1)
        self.alive &= norm.isfinite()
        step = torch.where(self.alive.unsqueeze(1), step, torch.zeros_like(step))
        better = self.alive & (norm < self.residual)
        self.best = torch.where(better.unsqueeze(1), z, self.best)
        self.residual = torch.where(better, norm, self.residual)
        self.found_at = torch.where(better, self.evaluations, self.found_at)
        within = norm <= self._atol + self._rtol * image.norm(dim=1)
        self.converged |= better & within
        self.evaluations += 1
        over = self.evaluations >= self._limit
        if not over and self._every is not None and self.evaluations % self._every == 0:
            over = bool((self.converged | ~self.alive).all())
        return step, over


class _Method(ABC):
    """Base of the searches: subclasses say where to evaluate next."""

    references: ClassVar[tuple[str, ...]] = ()

    def __call__(
        self,
        fn: Map,
        start: Tensor,
        max_evaluations: int,
        rtol: float = 0.0,
        atol: Tensor | float = 0.0,
        check_every: int | None = 4,
    ) -> FixedPoint:
        """Search; see `FixedPointSolver`."""
        search = _Search(fn, start, max_evaluations, rtol, atol, check_every)
        self._run(search, start)
        found = search.best, search.residual, search.found_at, search.converged, search.evaluations
        return FixedPoint(*found, search.estimate)

    @abstractmethod
    def _run(self, search: _Search, z: Tensor) -> None:
        """Evaluate until the search is over."""


@dataclass(frozen=True)
class Iteration(_Method):
    """z <- z + damping (fn(z) - z): plain iteration at damping 1.

    Converges where every eigenvalue of 1 - damping (1 - J) lies inside the unit circle. Two vectors of memory.

    Args:
        damping: In (0, 1].

    Raises:
        ValueError: damping is outside (0, 1].

    Example:
        >>> import torch
        >>> from loopgrad.gradients.solvers import Iteration
        >>> found = Iteration(damping=0.5)(torch.cos, torch.zeros(1, 1), max_evaluations=40, rtol=1e-4)
        >>> round(found.state.item(), 3)
        0.739
    """

    damping: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 1:
            raise ValueError(f"Iteration(damping={self.damping}) must be in (0, 1]: 1 is plain iteration")

    def _run(self, search: _Search, z: Tensor) -> None:
        over = False
        while not over:
            step, over = search.evaluate(z)
            z = z + self.damping * step


@dataclass(frozen=True)
class Anderson(_Method):
    """Anderson acceleration: the combination of the last points whose steps cancel best, by least squares per row.

    z <- sum_i a_i (z_i + damping step_i), with sum_i a_i = 1 and |sum_i a_i step_i| least. The regularisation is
    relative to the steps, so that the scale of the problem changes nothing.

    Args:
        depth: Points kept, at least 2.
        damping: Share of the combined step that is taken, in (0, 1].
        regularisation: Relative Tikhonov term of the least squares.

    Not recommended when:
        The map is far from linear on the way: it can be worse than plain iteration there.
    Reference:
        Anderson 1965, Journal of the ACM 12(4); Walker and Ni 2011, SIAM J. Numer. Anal. 49(4).

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import torch
        >>> from loopgrad.gradients.solvers import Anderson
        >>> Anderson()(torch.cos, torch.zeros(1, 1), max_evaluations=8).residual.item() < 1e-5
        True
    """

    depth: int = 6
    damping: float = 1.0
    regularisation: float = 1e-8

    references = ("anderson1965iterative", "walker2011anderson")

    def __post_init__(self) -> None:
        if self.depth < 2 or not 0 < self.damping <= 1 or self.regularisation < 0:
            raise ValueError(f"{self} needs depth of at least 2, damping in (0, 1] and a regularisation of at least 0")

    def _run(self, search: _Search, z: Tensor) -> None:
        points, steps = [], []
        while True:
            step, over = search.evaluate(z)
            if over:
                return
            points, steps = [*points[1 - self.depth :], z], [*steps[1 - self.depth :], step]
            if len(points) == 1:
                z = z + self.damping * step
                continue
            # differences from the newest, so that the constraint on the sum is gone: |step - D c| is least
            differences = step.unsqueeze(1) - torch.stack(steps[:-1], dim=1)  # (rows, m, features)
            moves = z.unsqueeze(1) - torch.stack(points[:-1], dim=1)
            c = _least_squares(differences, step, self.regularisation).unsqueeze(1)  # (rows, 1, m)
            z = z + self.damping * step - (c @ (moves + self.damping * differences)).squeeze(1)


@dataclass(frozen=True)
class Broyden(_Method):
    """Broyden's good method: a rank-one correction per step of an approximate inverse Jacobian of fn(z) - z.

    Args:
        depth: Corrections kept; then it starts anew from the point where it is.

    Cost:
        2 depth vectors.
    Not recommended when:
        The map is cheap: each step costs several passes over the corrections.
    Reference:
        Broyden 1965, Math. Comp. 19(92).

    Raises:
        ValueError: depth is below 1.

    Example:
        >>> import torch
        >>> from loopgrad.gradients.solvers import Broyden
        >>> Broyden()(torch.cos, torch.zeros(1, 1), max_evaluations=8).residual.item() < 1e-5
        True
    """

    depth: int = 20

    references = ("broyden1965class",)

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"Broyden(depth={self.depth}) must be at least 1")

    def _run(self, search: _Search, z: Tensor) -> None:
        step, over = search.evaluate(z)
        left: list[Tensor] = []  # the inverse of -(fn - 1)' is 1 + sum_i left_i right_i^T
        right: list[Tensor] = []
        while not over:
            move = step + _correction(left, right, step)
            z = z + move
            after, over = search.evaluate(z)
            change = step - after  # what the residual has gone down by
            if len(left) == self.depth:
                left, right = [], []
            along = change + _correction(left, right, change)
            back = move + _correction(right, left, move)
            scale = (move * along).sum(dim=1, keepdim=True)
            sound = scale.abs() > 1e-12 * move.norm(dim=1, keepdim=True) * along.norm(dim=1, keepdim=True)
            sound &= ~search.converged.unsqueeze(1)  # steps of the size of rounding teach nothing
            left.append(torch.where(sound, (move - along) / torch.where(sound, scale, torch.ones_like(scale)), 0))
            right.append(back)
            step = after
        if left:
            search.estimate = torch.stack(left), torch.stack(right)


def _correction(left: list[Tensor], right: list[Tensor], vector: Tensor) -> Tensor:
    total = torch.zeros_like(vector)
    for u, v in zip(left, right, strict=True):
        total = total + u * (v * vector).sum(dim=1, keepdim=True)
    return total


def _least_squares(columns: Tensor, target: Tensor, regularisation: float) -> Tensor:
    """Return c (rows, m) with |target - sum_j c_j columns_j| least; columns are (rows, m, features)."""
    # the columns nearly coincide: float32 would lose the digits
    system = columns @ columns.transpose(1, 2), columns @ target.unsqueeze(2)
    return in_float64(partial(_solution, regularisation=regularisation), *system)[0]


def _solution(gram: Tensor, right: Tensor, regularisation: float) -> tuple[Tensor]:
    diagonal = gram.diagonal(dim1=1, dim2=2)
    size = diagonal.sum(dim=1, keepdim=True)
    diagonal += regularisation * size + torch.where(size > 0, 0.0, 1.0)
    solution = torch.linalg.solve_ex(gram, right)[0].squeeze(2)
    return (torch.where(solution.isfinite(), solution, 0.0),)
