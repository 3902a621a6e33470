"""The linear solve that is none: what Broyden's forward search has learnt of the inverse Jacobian, transposed."""

from torch import Tensor
from torch.linalg import vector_norm

from loopgrad.gradients.solvers.protocol import LinearSolution, Map

ESTIMATE = "broyden_estimate"


def estimated(pull: Map, b: Tensor, left: Tensor | None, right: Tensor | None) -> LinearSolution:
    """Return w = (1 + sum_i u_i v_i^T)^T b in place of the solution of w - pull(w) = b, and what that leaves.

    Args:
        pull: v -> J^T v, row by row; taken once, for the residual.
        b: (rows, features) right-hand side.
        left: u, (corrections, rows, features); None for none.
        right: v.
    """
    w = b
    if left is not None and right is not None:
        w = b + (right.to(b.dtype) * (left.to(b.dtype) * b).sum(dim=2, keepdim=True)).sum(dim=0)
        w = w.where((b != 0).any(dim=1, keepdim=True), 0.0)  # a row without a cotangent may have no estimate
    return LinearSolution(w, vector_norm(b - (w - pull(w)), dim=1), 1)
