"""What solvers take and return: batches of independent problems, one per row of a matrix; they have no state."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

Map = Callable[[Tensor], Tensor]  # (rows, features) -> the same shape, row by row


class LinearSolution(NamedTuple):
    """Attributes: solution (rows, features); residual (rows,), norm of what is left; vjps, products taken."""

    solution: Tensor
    residual: Tensor
    vjps: int


class LinearSolver(Protocol):
    """Solves w - pull(w) = b for every row, starting from w = 0, so that the first product is that of b.

    Rows do not see each other. A row that is zero stays zero; one on which the method breaks down keeps what it has,
    one that meets a number that is not finite keeps what it has or gets zero.
    """

    def __call__(
        self, pull: Map, b: Tensor, tolerance: Tensor, max_vjps: int, check_every: int | None
    ) -> LinearSolution:
        """Solve until every row's residual is at most its tolerance.

        Args:
            pull: v -> J^T v, row by row.
            b: (rows, features) right-hand side.
            tolerance: (rows,) norms.
            max_vjps: Largest number of products.
            check_every: Products between two looks at the residuals, each of which waits for the device; None never
                looks and takes max_vjps products.
        """
        ...


class FixedPoint(NamedTuple):
    """Where a search for z = fn(z) ended.

    Attributes:
        state: (rows, features), the visited point of lowest residual of each row.
        residual: (rows,), norm of fn(z) - z there.
        found_at: (rows,), the evaluation of fn at which it was visited, from 0.
        converged: (rows,) bool, whether the residual is within the tolerance.
        evaluations: Calls of fn.
        estimate: U and V, each (corrections, rows, features), where the search has learnt that the inverse of 1 - J is
            about 1 + sum_i u_i v_i^T, with J the Jacobian of fn; None where it keeps no such estimate.
    """

    state: Tensor
    residual: Tensor
    found_at: Tensor
    converged: Tensor
    evaluations: int
    estimate: tuple[Tensor, Tensor] | None = None


class FixedPointSolver(Protocol):
    """Searches z = fn(z) for every row."""

    def __call__(
        self,
        fn: Map,
        start: Tensor,
        max_evaluations: int,
        rtol: float = 0.0,
        atol: Tensor | float = 0.0,
        check_every: int | None = 4,
    ) -> FixedPoint:
        """Search until every row has |fn(z) - z| <= atol + rtol |fn(z)|, or has met a number that is not finite.

        Args:
            fn: The map, row by row.
            start: (rows, features).
            max_evaluations: Largest number of calls of fn, at least 1.
            rtol: Relative to the norm of fn(z).
            atol: (rows,) norms.
            check_every: Evaluations between two looks at the residuals, each of which waits for the device.
        """
        ...
