"""HOW the gradient of a recursion is obtained: interchangeable estimators behind one contract. Imports torch only."""

if not __name__.startswith("loopgrad."):
    raise ImportError("import loopgrad.gradients, not gradients: run `make setup` first")

from loopgrad.gradients.batch_dims import BatchDims
from loopgrad.gradients.bptt import BPTT
from loopgrad.gradients.cheapest_exact import CheapestExact
from loopgrad.gradients.checkpointed import CheckpointedBPTT
from loopgrad.gradients.compressed import CompressedBPTT
from loopgrad.gradients.contract import Estimator, Rollout, Stats
from loopgrad.gradients.depth_distribution import DepthDistribution
from loopgrad.gradients.deq import TorchDEQ
from loopgrad.gradients.events import CycleEvent, Halted, ResidualBelow
from loopgrad.gradients.forward_gradient import ForwardGradient
from loopgrad.gradients.forward_mode import ForwardMode
from loopgrad.gradients.implicit import ImplicitGradient
from loopgrad.gradients.invertible import Invertible, Note, Undone
from loopgrad.gradients.jacobian import jacobian_penalty
from loopgrad.gradients.kf_rtrl import KFRTRL
from loopgrad.gradients.low_rank import LowRankES
from loopgrad.gradients.parallel_newton import ParallelNewton
from loopgrad.gradients.phantom import PhantomGradient
from loopgrad.gradients.ramp import Ramp
from loopgrad.gradients.random_truncation import RandomTruncation
from loopgrad.gradients.reversible import ReversibleBPTT
from loopgrad.gradients.rtrl import RTRL
from loopgrad.gradients.scopes import BackwardSteps, EveryCycle, LastOf, RandomUpdates, Scope
from loopgrad.gradients.snap import DiagonalRTRL, SnAp
from loopgrad.gradients.stationary import Stationary
from loopgrad.gradients.truncated import TruncatedBPTT
from loopgrad.gradients.until import Until
from loopgrad.gradients.uoro import UORO

__all__ = [
    "BPTT",
    "KFRTRL",
    "RTRL",
    "UORO",
    "BackwardSteps",
    "BatchDims",
    "CheapestExact",
    "CheckpointedBPTT",
    "CompressedBPTT",
    "CycleEvent",
    "DepthDistribution",
    "DiagonalRTRL",
    "Estimator",
    "EveryCycle",
    "ForwardGradient",
    "ForwardMode",
    "Halted",
    "ImplicitGradient",
    "Invertible",
    "LastOf",
    "LowRankES",
    "Note",
    "ParallelNewton",
    "PhantomGradient",
    "Ramp",
    "RandomTruncation",
    "RandomUpdates",
    "ResidualBelow",
    "ReversibleBPTT",
    "Rollout",
    "Scope",
    "SnAp",
    "Stationary",
    "Stats",
    "TorchDEQ",
    "TruncatedBPTT",
    "Undone",
    "Until",
    "jacobian_penalty",
]
