"""The damped step of a linear recursion: least squares by cyclic reduction, in place of a parallel Kalman smoother."""

import torch
from torch import Tensor

from loopgrad.gradients.prefix_scan import act, interleaved, solved, times


def damped(A: Tensor, s: Tensor, weight: Tensor) -> Tensor:
    r"""Return the x that minimises sum_t |x_t - A_t x_{t-1} - s_t|^2 + weight |x_t|^2, with x_{-1} = 0.

    What a Kalman smoother gives that takes the recursion for a model and 0, with variance 1 / weight, for an
    observation of every x_t. Its normal equations hang together in a chain of blocks, and are solved by cyclic
    reduction: the even ones are eliminated, a chain of half the length is left.

    Args:
        A: (T, ..., d, d); the first is not used.
        s: (T, ..., d).
        weight: (...), above 0, the same at all t; numbers or one per row.

    Cost:
        T factorisations and about 6 T products of matrices, in `levels_damped(T)` batches that wait for one another.
    """
    d, (later, link) = A.shape[-1], (A[1:], -A[1:])
    eye = torch.eye(d, dtype=A.dtype, device=A.device)
    diagonal = ((1 + weight)[..., None, None] * eye).expand_as(A).clone()
    diagonal[:-1] += times(later.mT, later)
    right = s.clone()
    right[:-1] -= act(later.mT, s[1:])
    # the block of t and t-1; the first has no part
    return _chain(diagonal, torch.cat([torch.zeros_like(A[:1]), link]), right.unsqueeze(-1)).squeeze(-1)


def _chain(D: Tensor, E: Tensor, b: Tensor) -> Tensor:
    """Return x of E_t x_{t-1} + D_t x_t + E_{t+1}^T x_{t+1} = b_t, (T, ..., d, 1)."""
    length = len(b)
    if length == 1:
        return solved(D, [b])[0]
    half = length // 2  # how many odd ones
    forth = torch.zeros_like(E)  # E_{t+1}^T, of even t
    forth[:-1] = E[1:].mT
    own, before, after = solved(D[::2], [b[::2], E[::2], forth[::2]])  # x = own - before x_{t-1} - after x_{t+1}
    back, on = E[1::2], forth[1::2]
    left = times(back, after[:half])
    D_odd = D[1::2] - left
    b_odd = b[1::2] - times(back, own[:half])
    E_odd = -times(back, before[:half])
    following = len(own) - 1  # odd ones that have an even one after them
    D_odd[:following] -= times(on[:following], before[1:])
    b_odd[:following] -= times(on[:following], own[1:])
    D_odd = (D_odd + D_odd.mT) / 2
    odd = _chain(D_odd, E_odd, b_odd)
    even = own
    even[1:] -= times(before[1:], odd[:following])
    even[:half] -= times(after[:half], odd)
    return interleaved(even, odd)


def levels_damped(length: int) -> int:
    """Return how many batches wait for one another in `damped`: 2 log2 T + 1 where T is a power of 2."""
    return 1 if length < 2 else 2 + levels_damped(length // 2)
