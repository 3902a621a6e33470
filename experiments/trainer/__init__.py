"""Hyperparameters of training, and how weights are updated: rules, schedules, and the optimisers that torch lacks."""

from loopgrad.experiments.trainer.adam_atan2 import AdamATan2
from loopgrad.experiments.trainer.hyperparameters import Trainer, device_of
from loopgrad.experiments.trainer.joined import Joined, Part
from loopgrad.experiments.trainer.rules import AdamATan2Rule, AdamWRule, Keys, MuonRule, SignSGDRule, UpdateRule, Weight
from loopgrad.experiments.trainer.schedules import Constant, Cosine, Linear, Schedule
from loopgrad.experiments.trainer.sparse_sign_sgd import SparseSignSGD
from loopgrad.experiments.trainer.synthetic import SyntheticGradients

__all__ = [
    "AdamATan2",
    "AdamATan2Rule",
    "AdamWRule",
    "Constant",
    "Cosine",
    "Joined",
    "Keys",
    "Linear",
    "MuonRule",
    "Part",
    "Schedule",
    "SignSGDRule",
    "SparseSignSGD",
    "SyntheticGradients",
    "Trainer",
    "UpdateRule",
    "Weight",
    "device_of",
]
