"""WHAT HAPPENED: what a gradient cost, how far it is from the exact one, and where the recursion went."""

if not __name__.startswith("loopgrad."):
    raise ImportError("import loopgrad.analysis, not analysis: run `make setup` first")

from loopgrad.analysis._descent import Descent, DescentStep, descent
from loopgrad.analysis.agreement import Agreement, compare_gradients, compare_with_bptt
from loopgrad.analysis.bias_variance import BiasVariance, bias_and_variance, minibatch_variance
from loopgrad.analysis.cell_steps import plan
from loopgrad.analysis.cost import Cost, interleaved, measure, median_ratio
from loopgrad.analysis.dynamics import classify, sweep_thresholds
from loopgrad.analysis.exact_gradients import gradients_of, reference_gradients
from loopgrad.analysis.fixed_points import FixedPoints, Multistart, find_fixed_points, multistart
from loopgrad.analysis.gaps import GradientGap, gradient_gaps
from loopgrad.analysis.intervals import (
    VerdictShare,
    bootstrap_interval,
    student_interval,
    verdict_shares,
    wilson_interval,
)
from loopgrad.analysis.official_site import OfficialSite
from loopgrad.analysis.plans import Planned
from loopgrad.analysis.positions import PositionVerdicts
from loopgrad.analysis.precision import cast, evaluated_in
from loopgrad.analysis.recorder import Recorder
from loopgrad.analysis.rounding import rounding_error
from loopgrad.analysis.sites import CellSite, ModuleSite
from loopgrad.analysis.spectrum import LyapunovExponents, eigenvalues, lyapunov, operator_norm, spectral_radius
from loopgrad.analysis.state_map import StateMap
from loopgrad.analysis.trajectory import Trace, record
from loopgrad.analysis.verdicts import Thresholds, Verdicts

__all__ = [
    "Agreement",
    "CellSite",
    "Cost",
    "Descent",
    "LyapunovExponents",
    "FixedPoints",
    "GradientGap",
    "ModuleSite",
    "OfficialSite",
    "Planned",
    "PositionVerdicts",
    "Recorder",
    "VerdictShare",
    "BiasVariance",
    "Multistart",
    "StateMap",
    "DescentStep",
    "Thresholds",
    "Trace",
    "Verdicts",
    "compare_with_bptt",
    "bootstrap_interval",
    "cast",
    "classify",
    "compare_gradients",
    "descent",
    "eigenvalues",
    "evaluated_in",
    "find_fixed_points",
    "gradient_gaps",
    "gradients_of",
    "interleaved",
    "lyapunov",
    "measure",
    "median_ratio",
    "minibatch_variance",
    "multistart",
    "operator_norm",
    "plan",
    "record",
    "reference_gradients",
    "rounding_error",
    "verdict_shares",
    "spectral_radius",
    "student_interval",
    "bias_and_variance",
    "sweep_thresholds",
    "wilson_interval",
]
