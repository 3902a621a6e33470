"""From a composed configuration to plans of runs: everything is built and checked before anything is written."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from loopgrad.experiments import checkpoint, records
from loopgrad.experiments.build import build
from loopgrad.experiments.overrides import ConfigError
from loopgrad.experiments.runs import Plan, build_model
from loopgrad.experiments.seeds import seed_for
from loopgrad.experiments.tasks.base import Task
from loopgrad.experiments.trainer import Trainer
from loopgrad.gradients import Estimator


@dataclass(frozen=True)
class Names:
    """What the configuration's choices are called, for records."""

    task: str
    model: str


@dataclass(frozen=True)
class Parts:
    """What a configuration describes, built and checked."""

    task: Task
    model: dict[str, Any]
    estimators: dict[str, Estimator]
    trainer: Trainer


def parts(config: DictConfig) -> Parts:
    """Build task (with its data), estimators and trainer, and the model once to see that it can be built.

    Raises:
        ConfigError: Something is missing, misspelt, of the wrong type or refused; the data are malformed.
    """
    task = build(config.task, "task")
    if not isinstance(task, Task):
        raise ConfigError(f"task: {config.task['_target_']} is not a Task")
    estimators = {}
    for name, node in (config.estimator or {}).items():
        if not isinstance(node, DictConfig):
            raise ConfigError(f"estimator.{name}={node}: give a class, estimator.{name}._target_=...")
        estimators[str(name)] = build(node, f"estimator.{name}")
        if not isinstance(estimators[str(name)], Estimator):
            raise ConfigError(f"estimator.{name}: {node['_target_']} is not an Estimator")
    if not estimators:
        raise ConfigError("estimator: name at least one, such as estimator=bptt")
    trainer = build(config.trainer, "trainer")
    try:
        trainer.torch_device()
        task.train_batch(0, 0, trainer.batch_size)
        task.test_set()
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error
    build_model(config.model, task, seed=0)
    return Parts(task, plain(config.model), estimators, trainer)


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as nested dicts, lists and values."""
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def plans(config: DictConfig, built: Parts, seeds: list[int], folder: Path) -> list[Plan]:
    """Return one plan per seed and estimator; all of a seed share data order and initial weights."""
    values, result = plain(config), []
    for seed in seeds:
        for name, estimator in built.estimators.items():
            run = f"{name}-seed{seed}"
            fingerprint = {key: values[key] for key in ("task", "model", "trainer")}
            fingerprint |= {"estimator": values["estimator"][name], "seed": seed}
            plan = Plan(
                run, built.task, built.model, estimator, built.trainer, seed, folder / "runs" / run, fingerprint
            )
            result.append(plan)
    return result


def claim(folder: Path, config: DictConfig, restart: bool) -> bool:
    """Make `folder` the place of this configuration's results; return whether they are complete already.

    Raises:
        ConfigError: It holds results of another configuration, or something that is no result.
    """
    stored = folder / "config.json"
    described = {key: value for key, value in plain(config).items() if key not in ("output_dir", "restart", "workers")}
    if restart and stored.exists():
        shutil.rmtree(folder)
    if stored.exists():
        changed = checkpoint.differences(records.read(stored)[0], described)
        if changed:
            raise ConfigError(
                f"{folder} holds results of another configuration ({', '.join(changed[:5])}): "
                "choose another output_dir=, or restart=true to replace them"
            )
        return (folder / "records.jsonl").exists()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and holds no results of this command: choose another output_dir=")
    records.write(stored, [described])
    return False


def data_seeds(seeds: Any) -> list[int]:
    """Check the list of seeds.

    Raises:
        ConfigError: It is no list of different ints of at least 0.
    """
    values = list(seeds) if OmegaConf.is_list(seeds) else [seeds]
    if not values or any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in values):
        raise ConfigError(f"seeds={seeds}: must be a list of ints of at least 0, such as seeds=[0,1,2]")
    if len(set(values)) < len(values):
        raise ConfigError(f"seeds={seeds}: a seed is named twice")
    for seed in values:
        seed_for("data", seed)
    return values
