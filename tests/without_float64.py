"""Has the CPU pass for a device that has no float64, and forbids it."""

from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loopgrad.gradients import wide

OF_NUMBERS = torch.ops.aten._efficientzerotensor.default, torch.ops.aten.to.dtype_layout


class Forbidden(TorchDispatchMode):
    """Raises where an operator gives a float64 tensor, but within `allowed`."""

    allowed = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        of_number = isinstance(found, torch.Tensor) and not found.dim() and func in OF_NUMBERS
        if of_number:  # a Python number beside dual numbers, which torch keeps on the CPU, and tries on meta
            return found
        many = found if isinstance(found, tuple | list) else [found]
        if not Forbidden.allowed and any(isinstance(it, torch.Tensor) and it.dtype == torch.float64 for it in many):
            raise AssertionError(f"{func} gives float64")
        return found


@contextmanager
def without_float64():
    """No tensor may be float64, and the library is told that the device has none."""
    with mock.patch.object(wide, "has_float64", lambda device: False), Forbidden():
        yield
