"""WHAT is iterated: layers, cells, recursive models, halting and deep supervision."""

if not __name__.startswith("loopgrad."):
    raise ImportError("import loopgrad.models, not models: run `make setup` first")

from loopgrad.models.act import ACT, Pondered
from loopgrad.models.blocks import AttentionBlock, MLPBlock, Net
from loopgrad.models.cells import OneStreamCell, TwoStreamCell
from loopgrad.models.coupled_state import Coupled
from loopgrad.models.coupling_base import Coupling
from loopgrad.models.feed_forward import FeedForward, FeedForwardCell
from loopgrad.models.frozen import FeatureTable, FrozenEncoder, FrozenModule, SlotLayout
from loopgrad.models.functional import rms_norm
from loopgrad.models.halting import FixedSegments, Halting, QHalt, QLearning
from loopgrad.models.hrm import HRM
from loopgrad.models.latent import LatentReasoner
from loopgrad.models.latent_embedding import PooledEmbedding, SlotEmbedding, Slots
from loopgrad.models.latent_heads import LatentLinear, LatentLoop, LatentMLP, LatentStack, LatentTRM
from loopgrad.models.layers import Embedding, Linear, SwiGLU, truncated_normal
from loopgrad.models.looped_transformer import LoopedTransformer
from loopgrad.models.losses import softmax_cross_entropy, stablemax_cross_entropy, token_loss
from loopgrad.models.model import Model, Output, Scored
from loopgrad.models.recurrent import GRU, LSTM
from loopgrad.models.recursive import RecursiveModel
from loopgrad.models.residual_halting import ResidualHalt
from loopgrad.models.reversible_cells import Damped, Leapfrog, Momentum
from loopgrad.models.supervision import Carry, Segment, initial_carry, predict, refill_carry, run_segment
from loopgrad.models.synthetic_gradients import Synthesiser
from loopgrad.models.token_model import TokenModel
from loopgrad.models.trm import TRM
from loopgrad.models.turing_machine import NeuralTuringMachine

__all__ = [
    "ACT",
    "GRU",
    "LSTM",
    "LoopedTransformer",
    "Model",
    "NeuralTuringMachine",
    "Scored",
    "TokenModel",
    "FeatureTable",
    "FrozenEncoder",
    "FrozenModule",
    "LatentLinear",
    "LatentLoop",
    "LatentMLP",
    "LatentReasoner",
    "LatentStack",
    "LatentTRM",
    "PooledEmbedding",
    "SlotEmbedding",
    "SlotLayout",
    "Slots",
    "HRM",
    "TRM",
    "AttentionBlock",
    "Carry",
    "Coupled",
    "Coupling",
    "Damped",
    "Embedding",
    "FeedForward",
    "FeedForwardCell",
    "FixedSegments",
    "Halting",
    "Leapfrog",
    "Linear",
    "MLPBlock",
    "Momentum",
    "Net",
    "OneStreamCell",
    "Output",
    "Pondered",
    "QHalt",
    "QLearning",
    "RecursiveModel",
    "ResidualHalt",
    "Segment",
    "SwiGLU",
    "Synthesiser",
    "TwoStreamCell",
    "initial_carry",
    "predict",
    "refill_carry",
    "rms_norm",
    "run_segment",
    "softmax_cross_entropy",
    "stablemax_cross_entropy",
    "token_loss",
    "truncated_normal",
]
