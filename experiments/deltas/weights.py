"""Finding trained weights: a file, a run, a comparison, or a checkpoint of the official code; each with what it needs.

A run of ours keeps task, model and trainer in its checkpoint; the official code keeps its own in all_config.yaml. What
such a file tells is built from loopgrad's own classes alone; what the user gave on the command line, from any.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from loopgrad.experiments.conf.annotations import shown
from loopgrad.experiments.conf.build import build
from loopgrad.experiments.conf.own import OWN
from loopgrad.experiments.conf.parts import build_model
from loopgrad.experiments.deltas import official_files
from loopgrad.experiments.deltas.outlines import check_identities, check_outline
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.tasks.base import Batch, Task
from loopgrad.experiments.trainer import Trainer
from loopgrad.experiments.training import checkpoint, tensor_files
from loopgrad.models import FixedSegments
from loopgrad.models.model import Model

Node = dict[str, Any]
Found = TypeVar("Found")
PUBLISHED_SEGMENTS = 16
MOST_OF_REASON = 500
MOST_TOKENS, MOST_MADE = 100_000, 1_000_000
ALONE = "copy the file of weights into a folder of its own and name that, with task= and model="


@dataclass(frozen=True)
class Weights:
    """One set of trained weights; it can be sent to another process.

    Attributes:
        name: For people, such as "sudoku4/bptt-seed0@200".
        path: The file.
        group: What the runs of one comparison have in common, the name of its folder.
        estimator: What trained them, "" where that is not known.
        seed: Seed of the run; None where it is not known.
        step: Optimiser steps taken; None where it is not known.
        told: Nodes of task, model and trainer that the file of the run tells; empty where there is none.
        given: Nodes of those that the user gave, which go first.
        official: What no tensor of an official checkpoint tells, such as num_heads; None where it tells.
    """

    name: str
    path: Path
    group: str
    estimator: str
    seed: int | None
    step: int | None
    told: Node
    given: Node
    official: Node

    def make_task(self) -> Task:
        """Return the task; its data are read or made where they are asked for, see `samples`."""
        task = self._built("task", Task)
        with self._naming_the_file("task"):
            spec = _of_task(lambda: task.spec)
            if "task" not in self.given:
                _check_size(self.told["task"], spec.seq_len)
        return task

    def samples(self, task: Task) -> Batch:
        """Return the held-out samples of the task.

        Raises:
            ConfigError: Its data cannot be read or made.
        """
        with self._naming_the_file("task"):
            return _of_task(task.test_set)

    def make_trainer(self) -> Trainer:
        """Return the trainer; where none is known, that of the published TRM in evaluation."""
        if "trainer" not in {**self.told, **self.given}:
            return Trainer(FixedSegments(self.official.get("max_segments") or PUBLISHED_SEGMENTS))
        return self._built("trainer", Trainer)

    def load(self, task: Task) -> Model:
        """Return the model with these weights, in evaluation mode.

        Raises:
            ConfigError: They do not fit the model or the task.
        """
        tensors = _tensors(self.path)
        try:
            check_identities(tensors, task)
            self._check_same_identities(task)
            if "model" in self.given:
                model = build_model(self.given["model"], task, seed=0)
                model.load_state_dict(tensors)
            elif "model" in self.told:
                node = self.told["model"]
                check_outline(tensors, lambda: self._told_model(task), node if isinstance(node, dict) else {})
                model = self._told_model(task)
                model.load_state_dict(tensors)
            else:
                model = official_files.model(tensors, task, self.official)
        except ConfigError:
            raise
        except (ValueError, RuntimeError, TypeError, OverflowError) as error:
            reason = shown(" ".join(str(error).split()), MOST_OF_REASON)
            raise ConfigError(f"{self.path} does not hold weights of this model and task: {reason}") from error
        return model.eval()

    def _built(self, part: str, kind: type[Found]) -> Found:
        given = part in self.given
        with self._naming_the_file(part):
            node = self.given[part] if given else self.told[part]
            found = build(node, part, None if given else OWN[part])
            if not isinstance(found, kind):
                raise ConfigError(f"{part}: {shown(node['_target_'])} is not a {kind.__name__}")
            return found

    def _told_model(self, task: Task) -> Model:
        with self._naming_the_file("model"):
            return build_model(self.told["model"], task, 0, OWN["model"])

    @contextmanager
    def _naming_the_file(self, part: str) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            if part in self.given:
                raise
            file, reason = self.path.parent / "checkpoint.pt", shown(error, MOST_OF_REASON)
            raise ConfigError(f"{file}: {reason}: give {part}= on the command line") from error

    def _check_same_identities(self, task: Task) -> None:
        """Raise ValueError if tasks with puzzle identities are as many, but not the same."""
        if not task.spec.num_puzzles or "task" not in self.given or "task" not in self.told:
            return
        try:
            trained_on = build(self.told["task"], "task", OWN["task"])
        except ConfigError:
            return  # a task of the user's own, or damaged: there is nothing to compare with
        if not isinstance(trained_on, Task) or trained_on.identities() != task.identities():
            raise ValueError(f"puzzles go by their identities in {trained_on}, the task is {task}: leave task= out")


def _check_size(node: Node, seq_len: int) -> None:
    """Refuse a task that a file tells and that would take hours, or all memory, to make.

    Raises:
        ConfigError: As said.
    """
    if seq_len > MOST_TOKENS:
        raise ConfigError(f"task: samples of {seq_len} tokens, and at most {MOST_TOKENS} are taken from a file")
    for key, value in node.items():
        if isinstance(value, int) and value > MOST_MADE and not key.endswith("seed"):
            raise ConfigError(f"task.{key}={shown(value)}: at most {MOST_MADE} are taken from a file")


def _of_task(ask: Callable[[], Found]) -> Found:
    try:
        return ask()
    except (ValueError, ImportError, MemoryError, OverflowError) as error:
        raise ConfigError(f"task: {error or 'its data do not fit in memory'}") from error


def find(place: Path, given: Node, official: Node, steps: list[int] | None) -> list[Weights]:
    """Return the weights at a place.

    Args:
        place: A file of weights, the folder of a run, or that of a comparison.
        given: Nodes of task, model and trainer that replace the run's own; a task is needed where there is no run, and
            without a model such a file must be in the official layout.
        official: Settings of an official checkpoint.
        steps: Steps whose weights are wanted, -1 for the last; None for all that were kept. Of folders only.

    Raises:
        ConfigError: There is nothing there, or something else, or what must be known is not.
    """
    if not place.exists():
        raise ConfigError(f"checkpoint={place}: there is no such file or folder")
    if not place.is_dir():
        return [_of_file(place, given, official)]
    runs = sorted(path.parent for path in place.glob("runs/*/checkpoint.pt"))
    runs = runs or [path.parent for path in place.glob("checkpoint.pt")]
    if not runs:
        raise ConfigError(
            f"checkpoint={place}: holds neither runs/ nor checkpoint.pt: name a run, or a file of weights"
        )
    found = []
    for run in runs:
        last, told, seed = _told(run, given)
        kept = {
            step: path for path in sorted(run.glob("weights-*.safetensors")) if (step := _step_of(path)) is not None
        }
        if (run / "weights.safetensors").exists():
            kept[last] = run / "weights.safetensors"
        chosen = sorted(kept) if steps is None else sorted({last if step == -1 else step for step in steps})
        missing = [step for step in chosen if step not in kept] or ([] if kept else [last])
        if missing:
            raise ConfigError(f"{run} keeps no weights of step {missing}; there is: {sorted(kept) or 'none'}")
        found += [_of_run(run, kept[step], step, told, seed, given) for step in chosen]
    return found


def _of_file(path: Path, given: Node, official: Node) -> Weights:
    if (path.parent / "checkpoint.pt").exists():
        last, told, seed = _told(path.parent, given)
        of_the_end = path.name in ("weights.safetensors", "checkpoint.pt")
        return _of_run(path.parent, path, last if of_the_end else _step_of(path), told, seed, given)
    tensors = _tensors(path)
    if "task" not in given:
        raise ConfigError(f"checkpoint={path}: no run lies beside it that tells its task: give task=")
    if "model" not in given and not any("L_level.layers." in name for name in tensors):
        raise ConfigError(f"checkpoint={path} is not in the official layout, so its model is not known: give model=")
    settings = {key: value for key, value in official.items() if value is not None}
    known = {**official_files.configuration(path.parent), **settings}
    return Weights(path.stem or path.name, path, path.parent.name, "", None, None, {}, given, known)


def _step_of(path: Path) -> int | None:
    """Return the step in the name of weights that were kept on the way, None for a name of another kind."""
    numbered = re.fullmatch(r"weights-([0-9]{1,18})\.safetensors", path.name)
    return int(numbered[1]) if numbered else None


def _told(run: Path, given: Node) -> tuple[int, Node, int | None]:
    """Return the last step of a run, the nodes that its checkpoint tells, and its seed."""
    path = run / "checkpoint.pt"
    content = checkpoint.read(path, ALONE)
    fingerprint = checkpoint.fingerprint_of(content, path, ALONE)
    told = {part: fingerprint[part] for part in OWN if part in fingerprint}
    if missing := [part for part in OWN if part not in told and part not in given]:
        raise ConfigError(f"{path} does not tell the {missing[0]} of its run: give {missing[0]}= on the command line")
    step, seed = content.get("step"), fingerprint.get("seed")
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ConfigError(f"{path} does not tell the step of its run: {ALONE}")
    return step, told, seed if isinstance(seed, int) and not isinstance(seed, bool) else None


def _of_run(run: Path, path: Path, step: int | None, told: Node, seed: int | None, given: Node) -> Weights:
    if not path.is_file():
        raise ConfigError(f"checkpoint={path} cannot be read: it is no regular file")
    folder = run.parent.parent.name if run.parent.name == "runs" else run.name
    estimator, _, number = run.name.rpartition("-seed")
    return Weights(
        name=f"{folder}/{run.name}@{path.stem if step is None else step}",
        path=path,
        group=folder,
        estimator=estimator or run.name,
        seed=int(number) if re.fullmatch(r"[0-9]{1,18}", number) else seed,
        step=step,
        told=told,
        given=given,
        official={},
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of safetensors, a state_dict of torch.save, or the averaged weights of our own checkpoint."""
    try:
        content = tensor_files.read(path)
        if isinstance(content, dict) and {"average", "fingerprint"} <= content.keys():
            average = tensor_files.check_dense(content["average"], "average")
            return {name.removeprefix("module."): t for name, t in average.items() if name.startswith("module.")}
        return tensor_files.check_dense(content, "state_dict")
    except tensor_files.Unreadable as error:
        raise ConfigError(f"checkpoint={path} cannot be read: {error}") from error
