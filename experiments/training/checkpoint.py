"""A checkpoint of a whole run: weights, average, optimiser, carry, step and every random number generator."""

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loopgrad.analysis.files import replace_bytes
from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.training.loop import Run
from loopgrad.experiments.training.seeds import generators
from loopgrad.gradients import Estimator

FORMAT = 1


def save(path: Path, run: Run, estimator: Estimator, fingerprint: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        path: File to replace.
        run: What is stored.
        estimator: Whose generators are stored too.
        fingerprint: The configuration of the run, plain values; `load` refuses another one.
    """
    content = {
        "format": FORMAT,
        "fingerprint": json.dumps(fingerprint, sort_keys=True),
        "step": run.step,
        "model": run.model.state_dict(),
        "average": run.average.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "carry": run.carry.tensors(),
        "exploration": run.exploration.get_state(),
        "estimator": [generator.get_state() for generator in generators(estimator)],
        "generators": _generators(),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    replace_bytes(path, buffer.getvalue())


def load(path: Path, run: Run, estimator: Estimator, fingerprint: dict[str, Any]) -> None:
    """Put a run, the estimator's generators and the global ones into the state of a checkpoint.

    Raises:
        ConfigError: The file is not a checkpoint of this version, or of a run with another configuration, or it does
            not hold the noise of this estimator.
    """
    remedy = "delete it to begin this run anew"
    content = read(path, remedy)
    stored = json.loads(content["fingerprint"])
    if stored != json.loads(json.dumps(fingerprint)):
        changed = ", ".join(records.differences(stored, fingerprint))
        raise ConfigError(
            f"{path} belongs to another configuration ({changed}): choose another output_dir, or restart=true"
        )
    noise, states = generators(estimator), content.get("estimator", [])  # older checkpoints have none
    if len(states) != len(noise):
        raise ConfigError(f"{path} holds no state of the estimator's random numbers: {remedy}")
    run.step = content["step"]
    run.model.load_state_dict(content["model"])
    run.average.load_state_dict(content["average"])
    run.optimizer.load_state_dict(content["optimizer"])
    run.carry = run.carry.with_tensors(content["carry"])
    run.exploration.set_state(content["exploration"])
    for generator, state in zip(noise, states, strict=True):
        generator.set_state(state)
    _restore_generators(content["generators"])


def read(path: Path, remedy: str) -> dict[str, Any]:
    """Return what `save` wrote.

    Raises:
        ConfigError: The file is not a checkpoint of this version; the message ends in the remedy.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = content["format"]
    except Exception as error:  # a damaged file makes torch.load raise almost anything
        reason = str(error).split("\n")[0]
        raise ConfigError(f"{path} is not a checkpoint that can be read ({reason}): {remedy}") from error
    if version != FORMAT:
        raise ConfigError(f"{path} has checkpoint format {version}, this version reads {FORMAT}")
    return content


def _generators() -> dict[str, Any]:
    version, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": json.dumps(random.getstate()),
        "numpy": [version, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
    }


def _restore_generators(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    version, internal, gauss = json.loads(states["python"])
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
