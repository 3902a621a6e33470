"""From a composed configuration to plans of runs: everything is built and checked before anything is written."""

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from loopgrad.experiments import checkpoint, records
from loopgrad.experiments.board import check_installed
from loopgrad.experiments.build import build
from loopgrad.experiments.overrides import ConfigError
from loopgrad.experiments.runs import Plan, build_model
from loopgrad.experiments.seeds import seed_for, seeded
from loopgrad.experiments.tasks.base import Task
from loopgrad.experiments.trainer import Trainer
from loopgrad.gradients import Estimator, ReversibleBPTT, TorchDEQ
from loopgrad.models import Coupling

TRAINING = frozenset({"task", "model", "estimator", "trainer"})
ANALYSIS = frozenset({"checkpoint", "analysis", "estimator"})


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
    check_installed(config.tensorboard)
    task = build(config.task, "task")
    if not isinstance(task, Task):
        raise ConfigError(f"task: {config.task['_target_']} is not a Task")
    estimators = estimators_of(config)
    trainer = build(config.trainer, "trainer")
    try:
        trainer.torch_device()
        task.train_batch(0, 0, trainer.batch_size)
        task.test_set()
    except (ValueError, ImportError, MemoryError) as error:
        raise ConfigError(str(error)) from error
    model = build_model(config.model, task, seed=0)
    for name, estimator in estimators.items():
        if isinstance(estimator, ReversibleBPTT) and not isinstance(model.cell, Coupling):
            raise ConfigError(
                f"estimator.{name}: the recursion must be reversible: add model.coupling=damped, leapfrog or momentum"
            )
        if isinstance(estimator, TorchDEQ) and importlib.util.find_spec("torchdeq") is None:
            raise ConfigError(f"estimator.{name} needs torchdeq: pip install 'loopgrad[peers]'")
    return Parts(task, plain(config.model), estimators, trainer)


def estimators_of(config: DictConfig, seed: int = 0) -> dict[str, Estimator]:
    """Build the estimators of a configuration, by name, with the noise of the run of `seed`.

    Raises:
        ConfigError: There is none, or one is not an estimator.
    """
    estimators = {}
    for name, node in (config.estimator or {}).items():
        if not isinstance(node, DictConfig):
            raise ConfigError(f"estimator.{name}={node}: give a class, estimator.{name}._target_=...")
        estimator = build(node, f"estimator.{name}")
        if not isinstance(estimator, Estimator):
            raise ConfigError(f"estimator.{name}: {node['_target_']} is not an Estimator")
        estimators[str(name)] = seeded(estimator, seed)
    if not estimators:
        raise ConfigError("estimator: name at least one, such as estimator=bptt")
    return estimators


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as nested dicts, lists and values."""
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def plans(config: DictConfig, built: Parts, seeds: list[int], folder: Path) -> list[Plan]:
    """Return one plan per seed and estimator; all of a seed share data order and initial weights."""
    values, result = plain(config), []
    for seed in seeds:
        for name, estimator in estimators_of(config, seed).items():
            run = f"{name}-seed{seed}"
            fingerprint = {key: values[key] for key in ("task", "model", "trainer")}
            fingerprint |= {"estimator": values["estimator"][name], "seed": seed}
            plan = Plan(
                run,
                built.task,
                built.model,
                estimator,
                built.trainer,
                seed,
                folder / "runs" / run,
                fingerprint,
                config.tensorboard,
            )
            result.append(plan)
    return result


def claim(folder: Path, config: DictConfig, restart: bool, kind: frozenset[str] = TRAINING) -> bool:
    """Make `folder` the place of this configuration's results; return whether they are complete already.

    Args:
        folder: The place.
        config: Configuration.
        restart: Whether earlier results of this kind of command are removed.
        kind: Keys by which the configuration of such a command is known.

    Raises:
        ConfigError: It holds results of another configuration, or something that is no result.
    """
    stored = folder / "config.json"
    known = _stored_configuration(stored, kind)
    described = {
        key: value
        for key, value in plain(config).items()
        if key not in ("output_dir", "restart", "workers", "tensorboard")
    }
    if restart and known is not None:
        for name in ("runs", "weights", "records.jsonl", "report.md", "config.json"):
            _remove(folder / name)
        known = None
    elif known is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and holds no results of this command: choose another output_dir=")
    if known is not None:
        changed = checkpoint.differences(known, described)
        if changed:
            raise ConfigError(
                f"{folder} holds results of another configuration ({', '.join(changed[:5])}): "
                "choose another output_dir=, or restart=true to replace them"
            )
        return (folder / "records.jsonl").exists()
    try:
        records.write(stored, [described])
    except OSError as error:
        raise ConfigError(f"output_dir={folder}: cannot write {stored}: {error.strerror}") from error
    return False


def _stored_configuration(path: Path, kind: frozenset[str]) -> dict[str, Any] | None:
    """Return the configuration that `claim` wrote, None if there is none or the file is somebody else's."""
    try:
        (found,) = records.read(path)
    except ValueError:
        return None
    return found if kind <= found.keys() else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def output_folder(config: DictConfig) -> Path:
    """Return output_dir.

    Raises:
        ConfigError: It, or restart, is not of its type.
    """
    if not isinstance(config.output_dir, str | int | float) or not str(config.output_dir):
        raise ConfigError(f"output_dir={config.output_dir}: must be the path of a folder")
    if not isinstance(config.get("restart", False), bool):
        raise ConfigError(f"restart={config.restart}: must be true or false")
    return Path(str(config.output_dir))


def check_count(name: str, value: Any, optional: bool = False) -> None:
    """Check a number of things.

    Raises:
        ConfigError: It is no int of at least 1 (or null, where it is optional).
    """
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value}: must be an int of at least 1{' or null' if optional else ''}")


def data_seeds(seeds: Any, name: str = "seeds") -> list[int]:
    """Check the list of seeds.

    Args:
        seeds: A list, or a single seed.
        name: Key of the configuration, for messages.

    Raises:
        ConfigError: It is no list of different ints of at least 0.
    """
    values = list(seeds) if OmegaConf.is_list(seeds) else [seeds]
    if not values or any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in values):
        example = "an int of at least 0" if name == "seed" else "a list of ints of at least 0, such as seeds=[0,1,2]"
        raise ConfigError(f"{name}={seeds}: must be {example}")
    if len(set(values)) < len(values):
        raise ConfigError(f"{name}={seeds}: a seed is named twice")
    for seed in values:
        seed_for("data", seed)
    return values
