"""Claims about recursion, each an experiment that could refute it."""

from loopgrad.experiments.claims.conditions import Training, trainings
from loopgrad.experiments.claims.contract import SIZES, Claim, Condition, Contrast, Readings
from loopgrad.experiments.claims.readings import read

__all__ = ["SIZES", "Claim", "Condition", "Contrast", "Readings", "Training", "read", "trainings"]
