"""Finding trained weights: a file, a run, a comparison, or a checkpoint of the official code; each with what it needs.

A run of ours keeps task, model and trainer in its checkpoint; the official code keeps its own in all_config.yaml.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from loopgrad.experiments.conf.build import build
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.tasks.base import Task
from loopgrad.experiments.trainer import Trainer
from loopgrad.experiments.training import checkpoint
from loopgrad.experiments.training.runs import build_model
from loopgrad.models import HRM, TRM, FixedSegments
from loopgrad.models.official import OfficialWeights
from loopgrad.models.recursive import RecursiveModel

Node = dict[str, Any]
PUBLISHED_SEGMENTS = 16
ARCHITECTURE = {  # what all_config.yaml calls it -> what `official` here does
    "num_heads": "num_heads",
    "H_cycles": "H_cycles",
    "L_cycles": "L_cycles",
    "halt_max_steps": "max_segments",
    "puzzle_emb_len": "puzzle_tokens",
    "forward_dtype": "dtype",
    "pos_encodings": "positions",
}
DTYPES = ("float32", "bfloat16", "float16", "float64")


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
        task: Configuration node of the task.
        model: Configuration node of the model; None for the official layout.
        trainer: Configuration node of the trainer; None where it is not known.
        official: What no tensor of an official checkpoint tells, such as num_heads; None where it tells.
    """

    name: str
    path: Path
    group: str
    estimator: str
    seed: int | None
    step: int | None
    task: Node
    model: Node | None
    trainer: Node | None
    official: Node

    def make_task(self) -> Task:
        """Return the task, with its data."""
        return build(OmegaConf.create(self.task), "task")

    def make_trainer(self) -> Trainer:
        """Return the trainer; where none is known, that of the published TRM in evaluation."""
        if self.trainer is not None:
            return build(OmegaConf.create(self.trainer), "trainer")
        return Trainer(FixedSegments(self.official.get("max_segments") or PUBLISHED_SEGMENTS))

    def load(self, task: Task) -> RecursiveModel:
        """Return the model with these weights, in evaluation mode.

        Raises:
            ConfigError: They do not fit the model or the task.
        """
        tensors = _tensors(self.path)
        try:
            if self.model is not None:
                model = build_model(self.model, task, seed=0)
                model.load_state_dict(tensors)
            else:
                model = _official(tensors, task, self.official)
        except (ValueError, RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{self.path} does not hold weights of this model and task: {reason}") from error
        return model.eval()


def find(place: Path, task: Node | None, model: Node | None, official: Node, steps: list[int] | None) -> list[Weights]:
    """Return the weights at a place.

    Args:
        place: A file of weights, the folder of a run, or that of a comparison.
        task: Node that replaces the run's own; needed where there is none.
        model: As task; without one, and without a run, the file must be in the official layout.
        official: Settings of an official checkpoint.
        steps: Steps whose weights are wanted, -1 for the last; None for all that were kept. Of folders only.

    Raises:
        ConfigError: There is nothing there, or something else, or what must be known is not.
    """
    if not place.exists():
        raise ConfigError(f"checkpoint={place}: there is no such file or folder")
    if place.is_file():
        return [_of_file(place, task, model, official)]
    runs = sorted(path.parent for path in place.glob("runs/*/checkpoint.pt"))
    runs = runs or [path.parent for path in place.glob("checkpoint.pt")]
    if not runs:
        raise ConfigError(
            f"checkpoint={place}: holds neither runs/ nor checkpoint.pt: name a run, or a file of weights"
        )
    found = []
    for run in runs:
        last, told = _told(run)
        kept = {int(path.stem.split("-")[1]): path for path in sorted(run.glob("weights-*.safetensors"))}
        if (run / "weights.safetensors").exists():
            kept[last] = run / "weights.safetensors"
        chosen = sorted(kept) if steps is None else sorted({last if step == -1 else step for step in steps})
        missing = [step for step in chosen if step not in kept] or ([] if kept else [last])
        if missing:
            raise ConfigError(f"{run} keeps no weights of step {missing}; there is: {sorted(kept) or 'none'}")
        found += [_of_run(run, kept[step], step, told, task, model) for step in chosen]
    return found


def _of_file(path: Path, task: Node | None, model: Node | None, official: Node) -> Weights:
    if (path.parent / "checkpoint.pt").exists():
        numbered, (last, told) = re.fullmatch(r"weights-(\d+)", path.stem), _told(path.parent)
        return _of_run(path.parent, path, int(numbered[1]) if numbered else last, told, task, model)
    if task is None:
        raise ConfigError(f"checkpoint={path}: no run lies beside it that tells its task: give task=")
    tensors = _tensors(path)
    if model is None and not any("L_level.layers." in name for name in tensors):
        raise ConfigError(f"checkpoint={path} is not in the official layout, so its model is not known: give model=")
    known = {**_official_config(path.parent), **{key: value for key, value in official.items() if value is not None}}
    return Weights(path.stem or path.name, path, path.parent.name, "", None, None, task, model, None, known)


def _told(run: Path) -> tuple[int, Node]:
    """Return the last step of a run and its configuration, from its checkpoint."""
    path = run / "checkpoint.pt"
    content = checkpoint.read(path, "name the file of weights, with task= and model=")
    fingerprint = json.loads(content["fingerprint"])
    if not {"task", "model", "trainer"} <= fingerprint.keys():
        raise ConfigError(f"{path} does not tell task, model and trainer of its run")
    return content["step"], fingerprint


def _of_run(run: Path, path: Path, step: int, told: Node, task: Node | None, model: Node | None) -> Weights:
    folder = run.parent.parent.name if run.parent.name == "runs" else run.name
    estimator, _, seed = run.name.rpartition("-seed")
    return Weights(
        name=f"{folder}/{run.name}@{step}",
        path=path,
        group=folder,
        estimator=estimator or run.name,
        seed=int(seed) if seed.isdigit() else told.get("seed"),
        step=step,
        task=task or told["task"],
        model=model or told["model"],
        trainer=told["trainer"],
        official={},
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of safetensors, a state_dict of torch.save, or the averaged weights of our own checkpoint."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(f"checkpoint={path} cannot be read: {reason}") from error
    if isinstance(content, dict) and {"average", "fingerprint"} <= content.keys():
        average = content["average"].items()
        return {name.removeprefix("module."): t for name, t in average if name.startswith("module.")}
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"checkpoint={path} holds no state_dict: save model.state_dict() itself")
    return content


def _official_config(folder: Path) -> Node:
    """Return what the official code's all_config.yaml says of its architecture; nothing where there is none."""
    path = folder / "all_config.yaml"
    if not path.exists():
        return {}
    try:
        stored: Any = OmegaConf.load(path)
        found = {ours: stored["arch"].get(theirs) for theirs, ours in ARCHITECTURE.items()}
    except Exception as error:
        raise ConfigError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    # 0 puzzle tokens and learned positions follow from the tensors
    return {name: value for name, value in found.items() if value not in (None, 0, "learned")}


def _official(tensors: dict[str, Tensor], task: Task, settings: Node) -> RecursiveModel:
    given = {key: value for key, value in settings.items() if value is not None and key != "max_segments"}
    dtype = given.pop("dtype", "float32")
    if dtype not in DTYPES:
        raise ValueError(f"official.dtype={dtype}: must be one of {', '.join(DTYPES)}")
    spec, told = task.spec, OfficialWeights(tensors)
    if told.vocab_size != spec.vocab_size:
        raise ValueError(f"the checkpoint has {told.vocab_size} symbols, the task {spec.vocab_size}")
    kind = HRM if any(name.startswith("H_level.") for name in told.tensors) else TRM
    forward = None if dtype == "float32" else getattr(torch, dtype)
    return kind.from_official(tensors, seq_len=spec.seq_len, forward_dtype=forward, **given)
