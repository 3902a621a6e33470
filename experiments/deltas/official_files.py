"""Checkpoints of the official code: what all_config.yaml beside one says, and the model of its tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from loopgrad.experiments.conf.annotations import shown
from loopgrad.experiments.deltas.outlines import check_identities, without_numbers
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.tasks.base import Task
from loopgrad.models import HRM, TRM
from loopgrad.models.official import OfficialWeights
from loopgrad.models.recursive import RecursiveModel

ARCHITECTURE = {  # what all_config.yaml calls it -> what `official` here does, and its type
    "num_heads": ("num_heads", int),
    "H_cycles": ("H_cycles", int),
    "L_cycles": ("L_cycles", int),
    "halt_max_steps": ("max_segments", int),
    "puzzle_emb_len": ("puzzle_tokens", int),
    "forward_dtype": ("dtype", str),
    "pos_encodings": ("positions", str),
}
DTYPES = ("float32", "bfloat16", "float16", "float64")
MOST_BYTES = 1_000_000
MOST = 100_000
"""A number in the file that no tensor bears out may be so large."""


def configuration(folder: Path) -> dict[str, Any]:
    """Return what the official code's all_config.yaml says of its architecture; nothing where there is none.

    Raises:
        ConfigError: The file is not such a configuration.
    """
    path = folder / "all_config.yaml"
    if not path.exists():
        return {}
    stored = _parsed(path)
    arch = stored.get("arch") if isinstance(stored, dict) else None
    if not isinstance(arch, dict):
        raise ConfigError(f"{path} cannot be read: it has no part `arch`, as the official code's has")
    found = {}
    for theirs, (ours, kind) in ARCHITECTURE.items():
        value = arch.get(theirs)
        if (
            value is None or value == 0 or value == "learned"
        ):  # no puzzle tokens, and learned positions, follow from the tensors
            continue
        if type(value) is not kind or (kind is int and not 0 < value <= MOST):
            limits = f"an int in 1..{MOST}" if kind is int else "a word"
            # what anchors repeat is small as long as nobody writes it out
            has = shown(value) if isinstance(value, str | int | float) else type(value).__name__
            raise ConfigError(f"{path} cannot be read: arch.{theirs} must be {limits}, got {has}")
        found[ours] = value
    return found


def _parsed(path: Path) -> Any:
    """Parse YAML of plain values: no tags, nothing interpolated, and what anchors repeat is not copied."""
    if not path.is_file():
        raise ConfigError(f"{path} cannot be read: it is no regular file")
    try:
        with open(path, "rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ConfigError(f"{path} cannot be read: it is longer than {MOST_BYTES} bytes")
        return yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path} cannot be read: not plain YAML: {shown(reason)}") from error
    except (
        RecursionError,
        ValueError,
        TypeError,
        OverflowError,
    ) as error:  # too deep, a date that is none, a list as key
        raise ConfigError(f"{path} cannot be read: not plain YAML") from error


def model(tensors: Mapping[str, Tensor], task: Task, settings: Mapping[str, Any]) -> RecursiveModel:
    """Return the model of an official checkpoint for a task.

    Raises:
        ValueError: The tensors are of no such model, or not of this task.
    """
    given = {key: value for key, value in settings.items() if value is not None and key != "max_segments"}
    dtype = given.pop("dtype", "float32")
    if dtype not in DTYPES:
        raise ValueError(f"official.dtype={dtype}: must be one of {', '.join(DTYPES)}")
    spec, told = task.spec, OfficialWeights(tensors)
    check_identities(tensors, task)
    if told.vocab_size != spec.vocab_size:
        raise ValueError(f"the checkpoint has {told.vocab_size} symbols, the task {spec.vocab_size}")
    kind = HRM if any(name.startswith("H_level.") for name in told.tensors) else TRM
    forward = None if dtype == "float32" else getattr(torch, dtype)

    def make() -> RecursiveModel:
        return kind.from_official(tensors, seq_len=spec.seq_len, forward_dtype=forward, **given)

    with without_numbers():  # its shapes are compared before anything of its size is made
        make()
    return make()
