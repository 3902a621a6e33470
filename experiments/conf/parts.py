"""From a composed configuration to task, model, estimators and trainer, built and checked."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from loopgrad.experiments.conf.applies import (
    check_compiled,
    check_estimators,
    check_sharded,
    check_synthetic,
    check_training,
)
from loopgrad.experiments.conf.build import build
from loopgrad.experiments.conf.own import Classes, without_young
from loopgrad.experiments.conf.rehearsal import rehearse
from loopgrad.experiments.conf.targets import parameters_of, taken_by
from loopgrad.experiments.conf.values import plain
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.tasks.base import Task
from loopgrad.experiments.trainer import Trainer
from loopgrad.gradients import Estimator
from loopgrad.gradients.host_memory import check_fits
from loopgrad.models.frozen import FeatureTable
from loopgrad.models.model import Model


@dataclass(frozen=True)
class Parts:
    """What a configuration describes.

    Attributes:
        task: With its data made.
        estimators: By name, their noise not yet seeded.
        trainer: Hyperparameters.
        values: The whole configuration as plain values; see `without_young`.
    """

    task: Task
    estimators: dict[str, Estimator]
    trainer: Trainer
    values: dict[str, Any]


def parts(config: DictConfig) -> Parts:
    """Build task (with its data), estimators and trainer, and the model once to see that it can be built.

    Raises:
        ConfigError: Something is missing, misspelt, of the wrong type or refused; the data are malformed.
    """
    task = build(config.task, "task")
    if not isinstance(task, Task):
        raise ConfigError(f"task: {config.task['_target_']} is not a Task")
    estimators = estimators_of(config)
    trainer = build(config.trainer, "trainer")
    try:
        device = trainer.torch_device()
    except ValueError as error:
        raise ConfigError(f"trainer.{error}") from error
    try:
        rows, tokens = trainer.batch_size, task.spec.seq_len  # with its data read, or encoded
        check_fits(3 * 8 * rows * tokens, f"trainer.batch_size={rows} samples of {tokens} tokens")
        task.train_batch(0, 0, rows)
        task.test_set()
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error
    except MemoryError as error:
        raise ConfigError(f"task: its data do not fit into memory: {error}") from error
    model = build_model(config.model, task, seed=0)
    if device.type == "cpu":
        _check_training_fits(model, rows, tokens)
    check_training(trainer, task, model)
    check_estimators(estimators, model, couples="coupling" in config.model)
    check_compiled(trainer, estimators, model)
    check_sharded(trainer, model)
    check_synthetic(trainer, estimators, model)
    rehearse(model, task, trainer, estimators)
    values = without_young(plain(config))
    for name in ("micro_batches", "shard"):  # ways to the same results, as the number of processes is
        values["trainer"].pop(name, None)
    return Parts(task, estimators, trainer, values)


def _check_training_fits(model: Model, rows: int, tokens: int) -> None:
    """Refuse sizes of which what any training holds, however it obtains gradients, is more than the machine has.

    Raises:
        ConfigError: As said.
    """
    weights = sum(parameter.numel() for parameter in model.parameters())
    states = rows * model.state_size(tokens)
    try:
        check_fits(5 * 4 * weights, f"model: {weights:,} weights with their average, gradient and two moments")
        check_fits(2 * 4 * states, f"trainer.batch_size={rows} states of the model")
    except ValueError as error:
        raise ConfigError(str(error)) from error


def estimators_of(config: DictConfig) -> dict[str, Estimator]:
    """Build the estimators of a configuration, by name.

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
        estimators[str(name)] = estimator
    if not estimators:
        raise ConfigError("estimator: name at least one, such as estimator=bptt")
    return estimators


def build_model(node: DictConfig | dict[str, Any], task: Task, seed: int, classes: Classes | None = None) -> Model:
    """Build the model of a configuration for a task, with initial weights drawn from a seed; see `build`."""
    model = build(node, "model", classes, **_sizes(node, task, classes), seed=seed)
    if not isinstance(model, Model):
        raise ConfigError(f"model: {node['_target_']} is not a Model")
    return model


def _sizes(node: DictConfig | dict[str, Any], task: Task, classes: Classes | None) -> dict[str, Any]:
    """Return what a model is told of a task: the sizes of its tables, or what a frozen encoder makes of the tokens.

    Raises:
        ConfigError: The model reads tokens where the task has frozen vectors, or the reverse.
    """
    spec, frozen = task.spec, _frozen(task)
    target = str(node.get("_target_", ""))
    known = parameters_of(target) if classes is None else taken_by(classes.get(target, Model), target)
    if target and ("frozen" in known) != (frozen is not None):
        name, kind = target.rpartition(".")[2], type(task).__name__
        if frozen is None:
            raise ConfigError(
                f"model: {name} reads frozen vectors, and {kind} has none: use task=clutrr, babi19 or digits4"
            )
        raise ConfigError(
            f"model: {name} learns vectors of tokens, and those of {kind} stand for texts with frozen vectors: use "
            "model=latent_loop, latent_stack, latent_trm, latent_mlp or latent_linear"
        )
    if frozen is not None:
        return {"frozen": frozen, "seq_len": spec.seq_len}
    return {"vocab_size": spec.vocab_size, "seq_len": spec.seq_len, "num_puzzles": spec.num_puzzles}


def _frozen(task: Task) -> FeatureTable | None:
    try:
        return task.frozen()
    except ValueError as error:
        raise ConfigError(str(error)) from error
