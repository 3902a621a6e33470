"""HOW the gradient of a recursion is obtained: interchangeable estimators behind one contract. Imports torch only."""

if not __name__.startswith("loopgrad."):
    raise ImportError("import loopgrad.gradients, not gradients: run `make setup` first")

from loopgrad.gradients.bptt import BPTT
from loopgrad.gradients.checkpointed import CheckpointedBPTT
from loopgrad.gradients.contract import Estimator, Rollout, Stationary, Stats
from loopgrad.gradients.reversible import ReversibleBPTT
from loopgrad.gradients.truncated import TruncatedBPTT

__all__ = ["BPTT", "CheckpointedBPTT", "Estimator", "ReversibleBPTT", "Rollout", "Stationary", "Stats", "TruncatedBPTT"]
