"""Figures of an analysis, each with the table of the numbers behind its marks; drawn from results, not from models.

All need matplotlib, the extra "plots", and raise ImportError where it is not installed.
"""

from loopgrad.analysis.plots.comparison import (
    Case,
    Run,
    accuracy_and_cost,
    accuracy_and_cost_by_case,
    residuals_by_estimator,
)
from loopgrad.analysis.plots.costs import Trade, memory, pareto
from loopgrad.analysis.plots.courses import Course, conditions
from loopgrad.analysis.plots.forward import Estimate, forward_cosines
from loopgrad.analysis.plots.fronts import Price, error_and_memory
from loopgrad.analysis.plots.learning_curves import Learning, learning
from loopgrad.analysis.plots.maps import heatmap, token_map
from loopgrad.analysis.plots.orbits import recurrence, trajectories
from loopgrad.analysis.plots.residual_curves import residuals
from loopgrad.analysis.plots.spectra import eigenvalue_cloud
from loopgrad.analysis.plots.speeding_up import SpeedUp, speed_ups
from loopgrad.analysis.plots.style import Drawn, rendered, save
from loopgrad.analysis.plots.training import Progress, over_training
from loopgrad.analysis.plots.validity_points import Point, validity
from loopgrad.analysis.plots.verdicts import verdict_bars

__all__ = [
    "Case",
    "Course",
    "Drawn",
    "Estimate",
    "Learning",
    "Point",
    "Price",
    "Progress",
    "Run",
    "SpeedUp",
    "Trade",
    "accuracy_and_cost",
    "accuracy_and_cost_by_case",
    "conditions",
    "eigenvalue_cloud",
    "error_and_memory",
    "forward_cosines",
    "heatmap",
    "learning",
    "memory",
    "over_training",
    "pareto",
    "recurrence",
    "rendered",
    "residuals",
    "residuals_by_estimator",
    "save",
    "speed_ups",
    "token_map",
    "trajectories",
    "validity",
    "verdict_bars",
]
