"""Newton's method on all states of a recursion: how steps are taken and judged, and the same system turned round."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients.damped_recursion import damped, levels_damped
from loopgrad.gradients.implicit_verdict import relative
from loopgrad.gradients.prefix_scan import levels, one_by_one_back, scan, scan_back

Images = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass
class Blocks:
    """Jacobians as blocks (T, batch, n, d, d): one of all features, or one of each feature alone.

    Attributes:
        full: Whether features see one another.
        alone: Whether they were seen not to: one product then tells all diagonals.
    """

    full: bool
    alone: bool = False

    def asked(self, features: int) -> range:
        """Return the features whose products are taken: all of them."""
        return range(features)

    def of(self, starts: Tensor, found: Tensor, stats: Any) -> Tensor:
        """Return d found / d starts of each update and sample, (T, batch, features), by products with `found`."""
        features = found.shape[-1]
        if not found.requires_grad:
            return found.new_zeros(*found.shape[:2], *((1, features, features) if self.full else (features, 1, 1)))
        if self.alone:
            diagonal = product(found, starts, torch.ones_like(found))
            stats.vjps += 1
            return diagonal[..., None, None]
        jacobian, mixed = None, []
        for i in self.asked(features):
            seed = torch.zeros_like(found)
            seed[..., i] = 1
            row = product(found, starts, seed)
            if self.full:
                jacobian = row.new_empty(*row.shape, features) if jacobian is None else jacobian
                jacobian[..., i, :] = row
            else:
                jacobian = torch.empty_like(row) if jacobian is None else jacobian
                jacobian[..., i] = row[..., i]
                row[..., i] = 0
                mixed.append((row != 0).any())
        assert jacobian is not None
        stats.vjps += features
        if self.full:
            return jacobian.unsqueeze(2)
        self.alone = not bool(torch.stack(mixed).any())
        return jacobian[..., None, None]

    def cut(self, vectors: Tensor) -> Tensor:
        """Return vectors (T, batch, features) in the blocks of the Jacobians, (T, batch, n, d)."""
        return vectors.unsqueeze(2) if self.full else vectors.unsqueeze(3)

    def joined(self, vectors: Tensor) -> Tensor:
        """Undo `cut`."""
        return vectors.flatten(2)


@dataclass
class Found:
    """What a search ends with.

    Attributes:
        states: (T, batch, features).
        residual: (batch,) of each sample the largest |z_{t+1} - f(z_t)| of a number, over the largest |z| of any.
        met: Whether it is small enough in all.
        images: The states before each update and those after it, with the graph in between.
    """

    states: Tensor
    residual: Tensor
    met: bool
    images: tuple[Tensor, Tensor]


def product(found: Tensor, starts: Tensor, seed: Tensor) -> Tensor:
    """Return a product with d found / d starts, whose graph is kept; zeros where that is none."""
    if not found.requires_grad:
        return torch.zeros_like(starts)
    (row,) = torch.autograd.grad(found, starts, seed, retain_graph=True, allow_unused=True)
    return torch.zeros_like(starts) if row is None else row


def allowed(how: Any, dtype: torch.dtype) -> float:
    """Return the tolerance: by default a hundred times the rounding of a number of this dtype."""
    return 100 * torch.finfo(dtype).eps if how.tolerance is None else how.tolerance


def searched(
    how: Any, blocks: Blocks, images: Images, states: Tensor, given: tuple[Tensor, Tensor], stats: Any
) -> Found:
    """Return the states at which z_{t+1} = f(z_t), or where the steps have run out.

    Numbers of a step that are not finite begin again from the first guess: states up to the first that is off are
    right whatever comes after them, so that T undamped steps always suffice, in numbers without rounding.

    Args:
        how: The estimator.
        blocks: Which Jacobians are taken.
        images: Of states, the states before each update and those after it.
        states: The first guess.
        given: Its images.
        stats: Take the cost.
    """
    guess = states
    weight = torch.full(states.shape[1:2], float(how.damping), dtype=states.dtype, device=states.device)
    stats.levels = levels_damped(len(states)) if how.damping else levels(len(states))
    (starts, found), jacobian = given, None
    left, residual = _left(states, found)
    while True:
        largest = float(torch.where(residual.isfinite(), residual, torch.inf).max()) if len(residual) else 0.0
        stats.residuals.append(largest)
        met = how.is_met(largest, states.dtype, stats)
        if met or stats.iterations == how.max_iterations:
            both = bool(how.damping and stats.iterations)  # of samples some tried states
            return Found(states, residual, met, images(states) if met and both else (starts, found))
        jacobian = blocks.of(starts, found, stats) if jacobian is None else jacobian
        stats.iterations += 1
        right = blocks.cut(-left)
        step = damped(jacobian, right, weight.unsqueeze(1)) if how.damping else scan(jacobian, right)
        tried = states + blocks.joined(step)
        tried = torch.where(tried.isfinite(), tried, guess)
        starts, found = images(tried)
        after, residual_after = _left(tried, found)
        if not how.damping:
            states, left, residual, jacobian = tried, after, residual_after, None
            continue
        better = _merit(after) < _merit(left)
        weight = torch.where(better, weight / 10, weight * 10)
        rows = better.view(1, -1, 1)
        if bool(better.any()):
            fresh = blocks.of(starts, found, stats)
            jacobian = torch.where(rows[..., None, None], fresh, jacobian)
        states, left = torch.where(rows, tried, states), torch.where(rows, after, left)
        residual = torch.where(better, residual_after, residual)


def _left(states: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Return z_{t+1} - f(z_t), and of each sample how large it is beside its states."""
    left = states - found.detach()
    return left, relative(left.abs().amax((0, 2)), states.abs().amax((0, 2)))


def _merit(left: Tensor) -> Tensor:
    return left.square().nan_to_num(torch.inf, torch.inf).sum((0, 2))


def going_back(how: Any, blocks: Blocks, starts: Tensor, found: Tensor, cotangent: Tensor, stats: Any) -> Tensor:
    """Return lambda_t = J_{t+1}^T lambda_{t+1} + c_t for all states, (T, batch, features).

    With full Jacobians one scan. With diagonal ones a scan is a step of an iteration, whose products with the whole
    Jacobians say what is left, until that is rounding; where it does not get there, full ones are taken.
    """
    c = cotangent
    if not found.requires_grad:
        return c
    if not blocks.full:
        tolerance, jacobian = allowed(how, starts.dtype), blocks.of(starts, found, stats)
        adjoints = blocks.joined(scan_back(jacobian, blocks.cut(c)))
        for _ in range(how.max_iterations):
            pulled = product(found, starts, adjoints)
            stats.vjps += 1
            left = c - adjoints
            left[:-1] += pulled[1:]
            size = relative(left.abs().amax((0, 2)), adjoints.abs().amax((0, 2)))
            if bool((size <= tolerance).all()):
                return adjoints
            stats.backward_iterations += 1
            if not bool(size.isfinite().all()):
                break
            adjoints = adjoints + blocks.joined(scan_back(jacobian, blocks.cut(left)))
    whole = replace(blocks, full=True, alone=False)
    jacobian = whole.of(starts, found, stats)
    adjoints = whole.joined(scan_back(jacobian, whole.cut(c)))
    if not bool(adjoints.isfinite().all()):  # products of matrices overflow before the vectors do
        adjoints = whole.joined(one_by_one_back(jacobian, whole.cut(c)))
    return adjoints
