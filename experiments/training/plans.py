"""From what a configuration describes to plans of runs, one per seed and estimator."""

import copy
from pathlib import Path

from loopgrad.experiments.conf.parts import Parts
from loopgrad.experiments.training.runs import Plan
from loopgrad.experiments.training.seeds import seeded
from loopgrad.experiments.training.tensorboard import check_installed


def plans(parts: Parts, seeds: list[int], folder: Path) -> list[Plan]:
    """Return one plan per seed and estimator; all of a seed share data order and initial weights.

    Args:
        parts: What is trained.
        seeds: Seeds of the runs.
        folder: Folder of the command; a run has one of its own in it.

    Raises:
        ConfigError: The key `tensorboard` is not a bool, or the package is missing.
    """
    values = parts.values
    check_installed(values["tensorboard"])
    return [
        Plan(
            name=f"{name}-seed{seed}",
            task=parts.task,
            estimator=copy.deepcopy(seeded(estimator, seed)),  # runs share no generator
            trainer=parts.trainer,
            seed=seed,
            folder=folder / "runs" / f"{name}-seed{seed}",
            fingerprint={
                **{key: values[key] for key in ("task", "model", "trainer")},
                "estimator": values["estimator"][name],
                "seed": seed,
            },
            tensorboard=values["tensorboard"],
        )
        for seed in seeds
        for name, estimator in parts.estimators.items()
    ]
