"""Linear recursions x_t = A_t x_{t-1} + b_t by an associative scan, in place of one update after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor


def scan(A: Tensor, b: Tensor) -> Tensor:
    r"""Return all x_t = A_t x_{t-1} + b_t, t = 0..T-1, with x_{-1} = 0.

    Pairs of maps are composed, the recursion of half the length is solved, and what lies between is filled in (Blelloch
    1990): (A', b') after (A, b) is (A' A, A' b + b').

    Args:
        A: (T, ..., d, d); the first is not used.
        b: (T, ..., d).

    Cost:
        T - 1 products of matrices and 2 T of a matrix and a vector, in `levels(T)` batches that wait for one another.
    """
    length = len(b)
    if length == 1:
        return b
    later, earlier = A[1::2], A[: length - 1 : 2]
    ends = act(later, b[: length - 1 : 2]) + b[1::2]  # (T // 2, ..., d)
    odd = scan(times(later, earlier) if length > 3 else later, ends)
    even = b[::2].clone()
    if length > 2:
        even[1:] += act(A[2::2], odd[: (length - 1) // 2])
    return interleaved(even, odd)


def scan_back(A: Tensor, b: Tensor) -> Tensor:
    """Return all x_t = A_{t+1}^T x_{t+1} + b_t, t = T-1..0, with x_T = 0; the first A is not used."""
    turned = A.mT.flip(0).roll(1, 0)  # that of t+1 in the place of t
    return scan(turned, b.flip(0)).flip(0)


def one_by_one_back(A: Tensor, b: Tensor) -> Tensor:
    """Return what `scan_back` does by T products of a matrix and a vector, where products of matrices overflow."""
    found: list[Tensor] = [b[-1]]
    for t in reversed(range(len(b) - 1)):
        found.append(act(A[t + 1].mT, found[-1]) + b[t])
    return torch.stack(found[::-1])


def levels(length: int) -> int:
    """Return how many batches of products wait for one another in `scan`: 2 log2 T - 1 where T is a power of 2."""
    return 0 if length < 2 else 1 + levels(length // 2) + (length > 2)


def interleaved(even: Tensor, odd: Tensor) -> Tensor:
    """Return what has these at even and at odd places."""
    pairs = torch.stack([even[: len(odd)], odd], 1).flatten(0, 1)
    return torch.cat([pairs, even[len(odd) :]]) if len(even) > len(odd) else pairs


def times(A: Tensor, B: Tensor) -> Tensor:
    """Return products of matrices (..., d, d); numbers where d is 1."""
    return A * B if A.shape[-1] == 1 else A @ B


def act(A: Tensor, x: Tensor) -> Tensor:
    """Return products of matrices (..., d, d) and vectors (..., d)."""
    return times(A, x.unsqueeze(-1)).squeeze(-1)


def solved(D: Tensor, right: Sequence[Tensor]) -> list[Tensor]:
    """Return D^-1 of each of some matrices (..., d, k), with symmetric positive D (..., d, d)."""
    sizes, joined = [it.shape[-1] for it in right], torch.cat(list(right), -1)
    if D.shape[-1] == 1:
        return list((joined / D).split(sizes, -1))
    factor, failed = torch.linalg.cholesky_ex(D)
    factor = torch.where(failed.view(*failed.shape, 1, 1) == 0, factor, torch.nan)
    return list(torch.cholesky_solve(joined, factor).split(sizes, -1))
