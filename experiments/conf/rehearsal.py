"""Whether estimators and model can do what training will ask of them, found out on two samples beforehand."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.tasks.base import Task
from loopgrad.experiments.trainer import Trainer
from loopgrad.gradients import Estimator, ForwardGradient, ForwardMode, TruncatedBPTT
from loopgrad.gradients.ramp import Ramp, estimator_at
from loopgrad.gradients.tangents import CannotCarry
from loopgrad.models import Coupling, Model
from loopgrad.models.model import told


def rehearse(model: Model, task: Task, trainer: Trainer, estimators: Mapping[str, Estimator]) -> None:
    """Run a segment where its depth is drawn or adapted, or an estimator is a ramp, has a scope or is of forward mode.

    Raises:
        ConfigError: An estimator, or the model, cannot.
    """
    drawn = torch.tensor([1, 2]) if trainer.depth_per == "sample" else None if trainer.depths is None else 1
    depth, what = trainer.halting.depth(drawn), "trainer.depths" if trainer.depths else "trainer.halting"
    if depth is not None and "depth" not in inspect.signature(model.forward).parameters:
        raise ConfigError(f"{what}: {type(model).__name__} runs one number of updates and no other: leave it out")
    for name, estimator in estimators.items():
        steps = (0, trainer.train_steps - 1) if isinstance(estimator, Ramp) else (0,)
        scoped = isinstance(estimator, TruncatedBPTT) and estimator.scope is not None
        if depth is None and not scoped and not isinstance(estimator, Ramp | ForwardGradient | ForwardMode):
            continue
        for step in steps:
            try:
                _run(model, task, estimator_at(copy.deepcopy(estimator), step), depth)
            except CannotCarry as error:
                why = str(error)
                if isinstance(model.cell, Coupling):
                    why = (
                        "the arithmetic of model.coupling has no rule of forward mode: leave it out, or use reversible"
                    )
                raise ConfigError(f"estimator.{name}: {why}") from error
            except (ValueError, TypeError) as error:
                asked = f"{what}: " if depth is not None else ""
                raise ConfigError(f"estimator.{name}: {asked}{error}") from error


def _run(model: Model, task: Task, estimator: Estimator, depth: Any) -> None:
    batch = task.train_batch(0, 0, 2)
    model(None, batch.inputs, batch.puzzle_ids, estimator, *told(depth))
