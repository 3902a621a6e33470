"""Which weights are updated how: what a configuration names, and the optimisers that follow for a model."""

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import nn

from loopgrad.experiments.trainer.adam_atan2 import AdamATan2
from loopgrad.experiments.trainer.joined import Part
from loopgrad.experiments.trainer.sparse_sign_sgd import SparseSignSGD

ADAM = ("exp_avg", "exp_avg_sq")


class Keys(NamedTuple):
    """What a trainer tells every rule: the rate after the warm-up, the decays of two moments, and that of weights."""

    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float


class Weight(NamedTuple):
    """A parameter, and whether it is a matrix of the recursion and no table, head or vector."""

    tensor: nn.Parameter
    hidden: bool


class UpdateRule(ABC):
    """How weights are updated; a frozen dataclass of what the trainer's own keys do not say."""

    references: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def parts(self, weights: Sequence[Weight], keys: Keys) -> list[Part]:
        """Return optimisers that have each weight once.

        Args:
            weights: All of a model but what another rule has, in the model's order.
            keys: Of the trainer.
        """


@dataclass(frozen=True)
class AdamWRule(UpdateRule):
    """AdamW (torch's) on every weight: what a trainer without a rule does.

    Reference:
        Loshchilov and Hutter 2019, arXiv 1711.05101.
    """

    references = ("loshchilov2019decoupled",)

    def parts(self, weights: Sequence[Weight], keys: Keys) -> list[Part]:
        """Return one optimiser."""
        return [_adamw(weights, keys)]


@dataclass(frozen=True)
class AdamATan2Rule(UpdateRule):
    """`AdamATan2` on every weight, as the code of HRM and TRM does; see there.

    Reference:
        Everett et al. 2024, arXiv 2407.05872.
    """

    references = AdamATan2.references

    def parts(self, weights: Sequence[Weight], keys: Keys) -> list[Part]:
        """Return one optimiser."""
        optimizer = AdamATan2([it.tensor for it in weights], keys.learning_rate, keys.betas, keys.weight_decay)
        return [Part(optimizer, ADAM, counted=True)]


@dataclass(frozen=True)
class MuonRule(UpdateRule):
    """Muon (torch's) on the matrices of the recursion, AdamW with the trainer's keys on all others.

    b <- mu b + (1 - mu) g, u = (1 - mu) g + mu b, w <- (1 - r d) w - r s U V^T, where U S V^T is the singular value
    decomposition of u and s its scale. U V^T is reached by five Newton-Schulz steps in bfloat16, which leave singular
    values between about 0.7 and 1.2. A matrix that holds several side by side, as gate and up of a SwiGLU, is one.

    Args:
        learning_rate: r; None for the trainer's, which suits scale="rms".
        weight_decay: d, decoupled; None for the trainer's.
        momentum: mu, in [0, 1).
        scale: "rms" for s = 0.2 sqrt(max(rows, columns)), which makes a step as large as AdamW's; "spectral" for
            s = sqrt(max(1, rows / columns)), for which rates are about 0.02.

    Cost:
        One moment per weight; 15 products of matrices per step and matrix, on the CPU without bfloat16 units slow.
    Not recommended when:
        Recipes are to be reproduced: no published figure of HRM or TRM was trained so.

    Raises:
        ValueError: A value is out of range.
        ImportError: This torch has no Muon; 2.9 and later do.

    Reference:
        K. Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024; Liu et al. 2025,
        arXiv 2502.16982 (scale "rms"); Loshchilov and Hutter 2019, arXiv 1711.05101.
    """

    learning_rate: float | None = None
    weight_decay: float | None = None
    momentum: float = 0.95
    scale: Literal["rms", "spectral"] = "rms"

    references = ("jordan2024muon", "liu2025muon", "loshchilov2019decoupled")

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value} must be a finite number of at least 0, or null for the trainer's")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be in [0, 1)")
        if not hasattr(torch.optim, "Muon"):
            raise ImportError(f"Muon is in torch 2.9 and later, this is {importlib.metadata.version('torch')}")

    def parts(self, weights: Sequence[Weight], keys: Keys) -> list[Part]:
        """Return Muon and AdamW, the first of them only where there are matrices."""
        rate = keys.learning_rate if self.learning_rate is None else self.learning_rate
        decay = keys.weight_decay if self.weight_decay is None else self.weight_decay
        adjusted = {"rms": "match_rms_adamw", "spectral": "original"}[self.scale]
        hidden, others = [it.tensor for it in weights if it.hidden], [it for it in weights if not it.hidden]
        found = []
        if hidden:
            muon = torch.optim.Muon(hidden, rate, decay, self.momentum, adjust_lr_fn=adjusted)
            found.append(Part(muon, ("momentum_buffer",)))
        return [*found, _adamw(others, keys)] if others else found


@dataclass(frozen=True)
class SignSGDRule:
    """`SparseSignSGD` on the table of puzzle vectors, with a rate and a decay of its own; see there.

    The average of the weights leaves the table out: what is evaluated are its present rows, as published.

    Args:
        learning_rate: Of the table; it follows the trainer's warm-up and schedule.
        weight_decay: Of the rows that a batch reads.

    Raises:
        ValueError: A value is out of range.

    Reference:
        Wang et al. 2025, arXiv 2506.21734; Bernstein et al. 2018, arXiv 1802.04434.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 1.0

    references = SparseSignSGD.references

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number of at least 0")

    def part(self, table: nn.Parameter) -> Part:
        """Return the optimiser of a table whose gradients are sparse."""
        return Part(SparseSignSGD([table], self.learning_rate, self.weight_decay))


def _adamw(weights: Sequence[Weight], keys: Keys) -> Part:
    betas = float(keys.betas[0]), float(keys.betas[1])  # torch takes 0 for another kind than 0.9
    tensors = [it.tensor for it in weights]
    return Part(torch.optim.AdamW(tensors, keys.learning_rate, betas, weight_decay=keys.weight_decay), ADAM, True)
