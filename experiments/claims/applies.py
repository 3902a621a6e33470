"""Whether what a claim measures can be measured of what a condition trains: found out before anything is trained."""

from dataclasses import replace

from loopgrad.experiments.claims.contract import Readings
from loopgrad.experiments.conf.parts import Parts, build_model
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.tasks import Arc, Task
from loopgrad.models import supervision
from loopgrad.models.model import Model


def check(readings: Readings, built: Parts) -> None:
    """Check that readings apply to a condition; other lengths are tried on one sample.

    Raises:
        ConfigError: The message names the reading.
    """
    task, name = built.task, type(built.task).__name__
    model = build_model(built.values["model"], task, seed=0).eval()
    if readings.settles and model.input_per_update:
        raise ConfigError("readings.settles: its model reads an input of its own at each update and comes to no rest")
    if readings.votes and not isinstance(task, Arc):
        raise ConfigError(f"readings.votes: only answers to ARC are voted for, and its task is {name}")
    if isinstance(task, Arc) and readings.votes > task.num_augmentations:
        raise ConfigError(f"readings.votes={readings.votes}: its task has {task.num_augmentations} augmentations")
    for length in readings.lengths:
        _try(model, built, length)


def _try(model: Model, built: Parts, length: int) -> None:
    sample = at_length(built.task, length).test_set()[:1]
    try:
        supervision.predict(model, sample.inputs, sample.puzzle_ids, 1, built.trainer.halting.depth(None))
    except (ValueError, RuntimeError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"readings.lengths: its model takes no sequences of length {length}: {reason}") from error


def at_length(task: Task, length: int) -> Task:
    """Return a task with sequences of another length, and as many held out as it has of that.

    Raises:
        ConfigError: The task has no such length.
    """
    if not hasattr(task, "length"):
        raise ConfigError(f"readings.lengths: only sequences have lengths, and its task is {type(task).__name__}")
    try:
        return replace(task, length=length)  # pyright: ignore[reportArgumentType]
    except ValueError:  # there are fewer sequences of it than are held out
        pass
    try:
        return replace(task, length=length, num_test=None)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        raise ConfigError(f"readings.lengths: {error}") from error
