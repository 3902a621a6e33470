"""The trainings of a claim: one per condition and seed, each as `loopgrad train` would run it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loopgrad.experiments.claims.applies import check
from loopgrad.experiments.claims.contract import Condition, Readings
from loopgrad.experiments.conf.overrides import composed
from loopgrad.experiments.conf.parts import parts
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.training.runs import Plan, plans


@dataclass(frozen=True)
class Training:
    """A training of a claim.

    Attributes:
        condition: Name of its condition.
        plan: What is run.
        readings: What is measured of its weights.
        overrides: Of `loopgrad train`, which repeats it with seed=.
    """

    condition: str
    plan: Plan
    readings: Readings
    overrides: list[str]

    def __str__(self) -> str:
        return self.plan.name


def trainings(
    conditions: Sequence[Condition], readings: Readings, seeds: list[int], also: list[str], folder: Path
) -> list[Training]:
    """Return the trainings, those of a seed together.

    Args:
        conditions: Ways of training.
        readings: What is measured of each.
        seeds: Seeds; the conditions of a seed have the same samples in the same order.
        also: Overrides behind those of each condition.
        folder: Each has a folder of its own in it, runs/CONDITION-seedN.

    Raises:
        ConfigError: A condition cannot be composed or built, or has not what is measured; the message names it.
    """
    found: list[Training] = []
    for condition in conditions:
        overrides = [*condition.overrides, *also]
        try:
            built = parts(composed("train", overrides))
            if len(built.estimators) != 1:
                raise ConfigError(f"estimator: one is trained, got {', '.join(built.estimators)}")
            check(readings, built)
            for plan in plans(built, seeds, folder):
                name = f"{condition.name}-seed{plan.seed}"
                own = replace(plan, name=name, folder=folder / "runs" / name)
                found.append(Training(condition.name, own, readings, overrides))
        except ConfigError as error:
            raise ConfigError(f"condition {condition.name}: {error}") from error
    return sorted(found, key=lambda it: seeds.index(it.plan.seed))
