"""Sums and small systems in float64, also for tensors of a device that has none, such as Apple's GPUs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def has_float64(device: torch.device) -> bool:
    """Return whether a device computes in float64."""
    return device.type != "mps"


def widened(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, or float32 where its device has no float64."""
    return tensor.double() if has_float64(tensor.device) else tensor.float()


def in_float64(fn: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> list[Tensor]:
    """Return what fn makes of small tensors in float64, in the dtype and on the device of the first.

    It runs on the CPU if that device has no float64, which waits for the device.
    """
    like, host = tensors[0], not all(has_float64(tensor.device) for tensor in tensors)
    given: list[Any] = [(tensor.cpu() if host else tensor).double() for tensor in tensors]
    return [found.to(like.dtype).to(like.device) for found in fn(*given)]
