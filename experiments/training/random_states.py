"""The states of the global random number generators: taken, checked without touching them, and put back."""

import json
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def take() -> dict[str, Any]:
    """Return the states as tensors and plain values."""
    version, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": _cuda(),
        "python": json.dumps(random.getstate()),
        "numpy": [version, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
    }


def _cuda() -> list[Tensor]:
    """Return the states of all GPUs, or of the one in use where other processes have theirs."""
    if not torch.cuda.is_available():
        return []
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return [torch.cuda.get_rng_state()]
    return torch.cuda.get_rng_state_all()


def check(states: dict[str, Any]) -> None:
    """Put the states into generators made for it.

    Raises:
        ValueError: They are of no such generators.
    """
    check_torch(states["torch"], "cpu")
    for state in states["cuda"] if torch.cuda.is_available() else ():
        check_torch(state, "cuda")
    try:
        random.Random().setstate(_python(states))
        np.random.RandomState().set_state(_numpy(states))
    except (ValueError, TypeError, OverflowError, RecursionError, KeyError, IndexError, AttributeError) as error:
        raise ValueError("a state is of no random number generator") from error


def check_torch(state: Any, device: torch.device | str) -> None:
    """Check the state of one of torch's generators.

    Raises:
        ValueError: It is something else.
    """
    try:
        torch.Generator(device=device).set_state(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError("a state is of no random number generator of torch") from error


def put(states: dict[str, Any]) -> None:
    """Put the global generators into these states, which `check` has passed."""
    torch.set_rng_state(states["torch"])
    for index, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, index)
    random.setstate(_python(states))
    np.random.set_state(_numpy(states))


def _python(states: dict[str, Any]) -> tuple[Any, ...]:
    version, internal, gauss = json.loads(states["python"])
    if not (gauss is None or isinstance(gauss, float)):
        raise ValueError("the second normal number is none")
    return version, tuple(internal), gauss


def _numpy(states: dict[str, Any]) -> tuple[Any, ...]:
    name, keys, position, has_gauss, cached = states["numpy"]
    if not isinstance(keys, Tensor) or not 0 <= position <= keys.numel():  # numpy would read past their end
        raise ValueError("keys are no tensor, or the position is outside them")
    return name, keys.numpy().astype(np.uint32), position, has_gauss, cached
