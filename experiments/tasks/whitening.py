"""Whitened vectors: their directions of largest variance, each scaled to the same one."""

import numpy as np
from numpy.typing import NDArray

_LEAST = 1e-10  # of the largest variance; less is rounding


def whitened(rows: NDArray[np.floating], fit: NDArray[np.bool_], directions: int) -> NDArray[np.float32]:
    r"""Return vectors in their directions of largest variance, with variance 1 in each.

    .. math:: v' = \Lambda^{-1/2} U^T (v - \mu), \qquad U \Lambda U^T \approx \mathrm{cov}(v)

    Args:
        rows: (vectors, size).
        fit: (vectors,) those that tell mean and covariance; the others are mapped alike.
        directions: How many are kept, from that of the largest variance on.

    Returns:
        (vectors, directions).

    Cost:
        One eigendecomposition, size cubed.
    Reference:
        Su et al. 2021, arXiv 2103.15316.

    Raises:
        ValueError: The vectors have fewer directions that differ.
    """
    known = rows[fit].astype(np.float64)
    mean = known.mean(0)
    variance, u = np.linalg.eigh((known - mean).T @ (known - mean) / len(known))
    variance, u = variance[::-1], u[:, ::-1]
    most = int((variance > _LEAST * max(variance[0], np.finfo(np.float64).tiny)).sum())
    if directions > most:
        raise ValueError(f"more than the {most} directions in which the vectors differ")
    u = u[:, :directions]
    u = u * np.where(u[abs(u).argmax(0), np.arange(directions)] < 0, -1, 1)  # a sign of its own tells nothing
    return ((rows - mean) @ u / np.sqrt(variance[:directions])).astype(np.float32)
