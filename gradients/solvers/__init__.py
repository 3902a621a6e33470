"""Solvers behind implicit gradients: searches for fixed points, and linear systems seen through products alone."""

from loopgrad.gradients.solvers.fixed_point import Anderson, Broyden, Iteration
from loopgrad.gradients.solvers.linear import LINEAR, anderson, bicgstab, by_iteration, gcr, gmres, neumann
from loopgrad.gradients.solvers.protocol import FixedPoint, FixedPointSolver, LinearSolution, LinearSolver

__all__ = [
    "LINEAR",
    "Anderson",
    "Broyden",
    "FixedPoint",
    "FixedPointSolver",
    "Iteration",
    "LinearSolution",
    "LinearSolver",
    "anderson",
    "bicgstab",
    "by_iteration",
    "gcr",
    "gmres",
    "neumann",
]
