"""WHAT HAPPENED: what a gradient cost, how far it is from the exact one, and where the recursion went."""

if not __name__.startswith("loopgrad."):
    raise ImportError("import loopgrad.analysis, not analysis: run `make setup` first")

from loopgrad.analysis.agreement import Agreement, against_bptt, compare, gradients_of, reference
from loopgrad.analysis.cost import Cost, interleaved, measure, median_ratio
from loopgrad.analysis.descent import Descent, Step, descent
from loopgrad.analysis.dynamics import Thresholds, Verdicts, classify, sweep
from loopgrad.analysis.fixed_points import FixedPoints, Starts, fixed_points, multistart
from loopgrad.analysis.gaps import Gap, gaps
from loopgrad.analysis.intervals import Share, bootstrap, shares, wilson
from loopgrad.analysis.official_site import OfficialSite
from loopgrad.analysis.precision import cast, evaluated_in
from loopgrad.analysis.recorder import Recorder
from loopgrad.analysis.rounding import rounding
from loopgrad.analysis.sites import CellSite, ModuleSite
from loopgrad.analysis.spectrum import Exponents, eigenvalues, lyapunov, operator_norm, spectral_radius
from loopgrad.analysis.spread import Spread, minibatch_variance, spread
from loopgrad.analysis.state_map import StateMap
from loopgrad.analysis.trajectory import Trace, record

__all__ = [
    "Agreement",
    "CellSite",
    "Cost",
    "Descent",
    "Exponents",
    "FixedPoints",
    "Gap",
    "ModuleSite",
    "OfficialSite",
    "Recorder",
    "Share",
    "Spread",
    "Starts",
    "StateMap",
    "Step",
    "Thresholds",
    "Trace",
    "Verdicts",
    "against_bptt",
    "bootstrap",
    "cast",
    "classify",
    "compare",
    "descent",
    "eigenvalues",
    "evaluated_in",
    "fixed_points",
    "gaps",
    "gradients_of",
    "interleaved",
    "lyapunov",
    "measure",
    "median_ratio",
    "minibatch_variance",
    "multistart",
    "operator_norm",
    "record",
    "reference",
    "rounding",
    "shares",
    "spectral_radius",
    "spread",
    "sweep",
    "wilson",
]
