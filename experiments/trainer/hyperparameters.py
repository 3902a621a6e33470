"""Hyperparameters of training, as a configuration gives them."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from loopgrad.experiments.trainer.building import optimizer_of
from loopgrad.experiments.trainer.joined import Joined
from loopgrad.experiments.trainer.rules import AdamWRule, Keys, SignSGDRule, UpdateRule
from loopgrad.experiments.trainer.schedules import Constant, Schedule
from loopgrad.experiments.trainer.synthetic import SyntheticGradients
from loopgrad.gradients import DepthDistribution
from loopgrad.models.halting import Halting
from loopgrad.models.losses import softmax_cross_entropy, stablemax_cross_entropy
from loopgrad.models.model import Model
from loopgrad.models.synthetic_gradients import Synthesiser


@dataclass(frozen=True)
class Trainer:
    """Hyperparameters of training.

    Args:
        halting: When a row takes a new sample.
        train_steps: Optimiser steps.
        batch_size: Rows of the carry.
        learning_rate: Learning rate after a linear warm-up; constant from there on without `schedule`.
        beta1: Decay of the first moment of AdamW or AdamATan2, per step.
        beta2: Decay of the second moment, per step.
        weight_decay: Decoupled, in units of the learning rate; on every parameter, as published.
        warmup_steps: Steps over which the learning rate rises from 0.
        ema_decay: Decay per step of the average of the weights that is evaluated; 0 evaluates the weights themselves.
        grad_clip: Largest norm of the gradient; 0 for no clipping.
        autocast: "bf16" or "fp16" runs forward passes under autocast, "fp16" with a scaled loss; "off" does not.
        compile: What torch.compile (inductor) compiles, in place: "net", the nets that the cell calls, which is what
            pays; "cell" or "model", all of it; "none".
        cross_entropy: Loss of a token.
        jacobian_weight: Weight of the Jacobian penalty of the last cycle at the state where it ends, added to the loss;
            0 for none.
        prefetch: Whether the batch of the next step is drawn on a thread while a step runs; the batches are the same.
        eval_every: Steps between evaluations on the held-out set; the last step is always evaluated.
        eval_batch_size: Samples evaluated at once.
        verdict_samples: Held-out samples whose recursion is followed at each evaluation, for the residual and the
            verdicts in the log; 0 for none.
        checkpoint_every: Steps between checkpoints; the last step is always kept.
        weights_every: Steps between weights that are kept for analysis; 0 for those of the last step alone.
        device: "auto" for CUDA where there is one, else a torch device.
        num_threads: Threads of a CPU run. One makes results independent of the machine's number of cores.
        depths: Distribution of the cycles of each training step; None for the model's own number. Draws follow from the
            run's seed and the step alone; evaluation always has the model's own number.
        depth_per: "batch", one draw for all samples, or "sample", one for each.
        most_cycles: Larger draws count as this one.
        optimizer: How weights are updated; None for AdamW.
        puzzle_optimizer: How puzzle vectors are; None for as all others.
        schedule: How rates go after the warm-up; None for constant.
        micro_batches: Parts of a process's rows that are run one after the other, their gradients added up: less memory
            for the same losses, to rounding. What is drawn anew by each forward pass (dropout, estimators' noise) and
            what looks at a batch as one (when a solver stops) depends on it.
        segments_per_update: Segments of every row between updates of the weights, whose losses are averaged; published
            is 1. Rows that halt in between take new samples.
        shard: What processes share beside the rows of a batch: "none", or "fsdp2" for weights, their average and the
            moments of the optimiser, of which each then holds a part. The results are the same, to rounding.
        synthetic: Synthetic gradients, which tell a segment what later ones want of the state it ends in; None for no
            gradient from segment to segment, as published.

    Raises:
        ValueError: A value is out of range, or depths are not those of the halting rule.
    """

    halting: Halting
    train_steps: int = 400
    batch_size: int = 96
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    warmup_steps: int = 30
    ema_decay: float = 0.98
    grad_clip: float = 1.0
    autocast: Literal["off", "bf16", "fp16"] = "off"
    compile: Literal["none", "net", "cell", "model"] = "none"
    cross_entropy: Literal["stablemax", "softmax"] = "stablemax"
    jacobian_weight: float = 0.0
    prefetch: bool = False
    eval_every: int = 50
    eval_batch_size: int = 512
    checkpoint_every: int = 100
    weights_every: int = 0
    device: str = "auto"
    num_threads: int = 1
    depths: DepthDistribution | None = None
    depth_per: Literal["batch", "sample"] = "batch"
    most_cycles: int = 64
    optimizer: UpdateRule | None = None
    puzzle_optimizer: SignSGDRule | None = None
    schedule: Schedule | None = None
    micro_batches: int = 1
    segments_per_update: int = 1
    shard: Literal["none", "fsdp2"] = "none"
    verdict_samples: int = 32
    synthetic: SyntheticGradients | None = None

    def __post_init__(self) -> None:
        if self.depths is None and self.depth_per != "batch":
            raise ValueError(f"depth_per={self.depth_per} draws nothing without depths: give depths, or leave it out")
        if self.depths is not None:
            self.halting.depth(1)  # which may be what sets it
            if not self.depths.mean <= self.most_cycles:
                raise ValueError(f"most_cycles={self.most_cycles} must be at least depths.mean={self.depths.mean}")
        counts = "train_steps", "batch_size", "eval_every", "eval_batch_size", "checkpoint_every", "num_threads"
        for name in (*counts, "micro_batches", "segments_per_update"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.micro_batches > self.batch_size:
            raise ValueError(f"micro_batches={self.micro_batches} must be at most batch_size={self.batch_size}")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        amounts = "learning_rate", "weight_decay", "warmup_steps", "grad_clip", "jacobian_weight", "weights_every"
        for name in (*amounts, "verdict_samples"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number of at least 0")

    def torch_device(self) -> torch.device:
        """Return the device to train on.

        Raises:
            ValueError: The device does not exist here.
        """
        return device_of(self.device)

    def optimizer_of(self, model: Model, synthesiser: Synthesiser | None = None) -> Joined:
        """Return the optimiser of a model, and of a synthesiser beside it.

        Raises:
            ValueError: There is a rule for puzzle vectors, and the model has none.
        """
        keys = Keys(self.learning_rate, (self.beta1, self.beta2), self.weight_decay)
        own = optimizer_of(model, self.optimizer or AdamWRule(), self.puzzle_optimizer, keys)
        if self.synthetic is None or synthesiser is None:
            return own
        return Joined([*own.parts, self.synthetic.part(synthesiser)])

    def rate_factor(self, step: int) -> float:
        """Return the factor on learning rates at a step, counted from 1."""
        return (self.schedule or Constant()).factor(step, self.train_steps, self.warmup_steps)

    def loss_of_token(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return the cross entropy that is trained on."""
        return {"stablemax": stablemax_cross_entropy, "softmax": softmax_cross_entropy}[self.cross_entropy]

    def precision(self, device: torch.device) -> Any:
        """Return the context in which forward passes run."""
        if self.autocast == "off":
            return nullcontext()
        return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[self.autocast])


def device_of(name: str) -> torch.device:
    """Return the device that `device=name` means; "auto" is CUDA where there is one.

    Raises:
        ValueError: The device does not exist here.
    """
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        probe = torch.zeros((), device=wanted)
        probe.item()  # a device such as "meta" holds no values
        return probe.device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name}: {str(error).splitlines()[0]}") from error
