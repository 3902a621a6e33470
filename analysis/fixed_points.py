"""Are there fixed points near where a recursion ended, are they stable, and do all starts lead to the same one?"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from loopgrad.analysis.spectrum import spectral_radius
from loopgrad.analysis.state_map import StateMap
from loopgrad.analysis.summaries import band_of, screen
from loopgrad.gradients.solvers import gmres


class FixedPoints(NamedTuple):
    """What a search found, a row per sample.

    Attributes:
        state: (batch, n) float64, the visited point of lowest residual.
        residual: (batch,), |f(z) - z| over the larger of the norms of z and of the start; nan where z or f(z) at the
            start is not finite, and then nothing is searched.
        found: (batch,) bool, whether the residual is within the tolerance.
        distance: (batch,), from the start, over the norm of the start.
        radius: (batch,), spectral radius of J there; nan where none was found or J is not finite. Below one: stable.
    """

    state: Tensor
    residual: np.ndarray
    found: np.ndarray
    distance: np.ndarray
    radius: np.ndarray

    def __repr__(self) -> str:
        """Say how many were found, and how near and how stable they are."""
        found, stable = int(self.found.sum()), int((self.radius < 1).sum())
        title = f"FixedPoints: found from {found} of {self.found.size} starts, {stable} of them stable"
        numbers = {name: getattr(self, name) for name in ("residual", "distance", "radius")}
        rows = [[name, band_of(values), band_of(values[self.found])] for name, values in numbers.items()]
        return screen(f"{title}; median [5 %, 95 %]", ["", "all", "found"], rows)


def find_fixed_points(
    f: StateMap, start: Tensor, tol: float = 1e-10, max_steps: int = 50, max_products: int = 60
) -> FixedPoints:
    """Search z = f(z) from each start by Newton's method, which finds unstable fixed points as well as stable ones.

    z <- z + s d with (1 - J) d = f(z) - z, solved by GMRES on products with J, and s halved until the residual falls.

    Args:
        f: The map, best in float64.
        start: (batch, n), such as the last states of a rollout.
        tol: Relative residual that counts as found.
        max_steps: Newton steps.
        max_products: Products with J in a step.

    Cost:
        Up to max_products + 11 evaluations per step, and the spectral radius at what was found.
    Not recommended when:
        The claim is that there is no fixed point: a search that fails is not a proof.
    Reference:
        Sussillo and Barak 2013, Neural Computation 25(3); Golub and Sussillo 2018, JOSS 3(31).

    Example:
        >>> import torch
        >>> from loopgrad.analysis import StateMap, find_fixed_points
        >>> from loopgrad.gradients import Stationary
        >>> f = StateMap(Stationary(lambda z, x: 3.9 * z * (1 - z)), torch.full((1, 1), 0.6), None)
        >>> found = find_fixed_points(f, f.point)  # z = 1 - 1 / 3.9, where |f'| = 1.9: never visited
        >>> round(found.state.item(), 4), round(found.radius.item(), 4)
        (0.7436, 1.9)
    """
    z = start.to(f.point)
    origin = z.norm(dim=1)

    def scale(z: Tensor) -> Tensor:  # a fixed point at zero has no size of its own
        return torch.maximum(z.norm(dim=1), origin).clamp(min=torch.finfo(z.dtype).tiny)

    step = f(z) - z
    lost = ~step.isfinite().all(dim=1)
    step = step.masked_fill(lost.unsqueeze(1), 0.0)  # nothing left to solve, so that no other sample waits for it
    size = step.norm(dim=1)
    for _ in range(max_steps):
        if not bool((size > tol * scale(z)).any()):
            break
        move = gmres(lambda v: f.push(z, v)[1][0], step, 1e-8 * size, max_products, 4).solution  # noqa: B023
        share = torch.ones_like(size)
        best, best_step, best_size = z, step, size
        for _ in range(10):
            tried = z + share.unsqueeze(1) * move
            after = (f(tried) - tried).masked_fill(lost.unsqueeze(1), 0.0)
            left = after.norm(dim=1)
            better = (left < best_size).unsqueeze(1)
            best, best_step = torch.where(better, tried, best), torch.where(better, after, best_step)
            open_ = ~(left < size)
            best_size = torch.where(better.squeeze(1), left, best_size)
            if not bool(open_.any()):
                break
            share = torch.where(open_, share / 2, 0.0)
        if not bool((best_size < size).any()):
            break
        z, step, size = best, best_step, best_size
    residual = (size / scale(z)).masked_fill(lost, torch.nan).cpu().numpy()
    found = residual <= tol
    distance = ((z - start.to(z)).norm(dim=1) / origin).cpu().numpy()
    radius = np.full(len(z), np.nan)
    for i in np.flatnonzero(found):
        radius[i] = spectral_radius(f.sample(int(i)), z[i : i + 1])[0]
    return FixedPoints(z, residual, found, distance, radius)


class Multistart(NamedTuple):
    """Where several starts of the same samples ended.

    Attributes:
        end: (starts, batch, n), the last states.
        spread: (batch,), largest distance between two ends over the median norm of the ends; nan where one is lost.
        alignment: (batch,), least cosine between two ends; nan likewise.
        clusters: (batch,) int, number of different ends: ends closer than tol times the norm, directly or through
            others, are one, and an end that is not finite is one of its own.
    """

    end: Tensor
    spread: np.ndarray
    alignment: np.ndarray
    clusters: np.ndarray

    def __repr__(self) -> str:
        """Say how many samples ended where all their starts did."""
        starts, batch, _ = self.end.shape
        title = f"Multistart: {starts} starts of {batch} samples, one end for {int((self.clusters == 1).sum())} of them"
        rows = [["spread", band_of(self.spread)], ["alignment", band_of(self.alignment)]]
        return screen(title, ["", "median [5 %, 95 %]"], [*rows, ["ends", band_of(self.clusters)]])


def multistart(f: StateMap, starts: Tensor, num_steps: int, tol: float = 1e-2) -> Multistart:
    """Iterate f from several starts and compare the ends: is the recursion independent of its path?

    Args:
        f: The map.
        starts: (starts, batch, n): zero, the learned one, random ones of the same size, another sample's end.
        num_steps: Applications of f.
        tol: Relative distance below which two ends are the same.

    Cost:
        `starts` times `num_steps` evaluations.
    Reference:
        Anil et al. 2022, arXiv 2211.09961.

    Raises:
        ValueError: There are fewer than two starts.

    Example:
        >>> import torch
        >>> from loopgrad.analysis import StateMap, multistart
        >>> from loopgrad.gradients import Stationary
        >>> f = StateMap(Stationary(lambda z, x: torch.tanh(3 * z)), torch.ones(1, 1), None)
        >>> multistart(f, torch.tensor([[[0.5]], [[2.0]], [[-0.1]]]), num_steps=50).clusters
        array([2])
    """
    from scipy.sparse.csgraph import connected_components  # here: loading scipy changes the filters of warnings

    if starts.shape[0] < 2:
        raise ValueError(f"starts has shape {tuple(starts.shape)}: give at least two starts, (starts, batch, n)")
    ends = []
    for start in starts:
        z = start.to(f.point)
        for _ in range(num_steps):
            z = f(z)
        ends.append(z)
    end = torch.stack(ends)
    by_sample = end.transpose(0, 1)  # (batch, starts, n)
    by_sample = by_sample.where(by_sample.isfinite(), torch.nan)
    scale = by_sample.norm(dim=2).nanmedian(dim=1).values.clamp(min=torch.finfo(end.dtype).tiny)
    apart = torch.cdist(by_sample, by_sample) / scale.view(-1, 1, 1)
    unit = torch.nn.functional.normalize(by_sample, dim=2)
    clusters = np.array([connected_components(near)[0] for near in (apart <= tol).cpu().numpy()])
    spread, alignment = apart.amax(dim=(1, 2)), (unit @ unit.mT).amin(dim=(1, 2))
    return Multistart(end, spread.cpu().numpy(), alignment.cpu().numpy(), clusters)
