"""Leaving the state of torch, and the flags and buffers of a module, as they were, whatever interrupts the work."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._C._autograd import _pop_saved_tensors_default_hooks, _top_saved_tensors_default_hooks
from torch.nn.utils import parametrize
from torch.overrides import _len_torch_function_stack, _pop_mode


@dataclass(frozen=True)
class Autocast:
    """The settings of autocast in this thread; `devices` holds (device, whether enabled, dtype)."""

    cached: bool
    devices: tuple[tuple[str, bool, torch.dtype], ...]

    @classmethod
    def now(cls, devices: Sequence[str] = ("cpu", "cuda")) -> "Autocast":
        """Return the settings of now."""
        settings = tuple((d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices)
        return cls(torch.is_autocast_cache_enabled(), settings)

    def set(self) -> None:
        """Make these the settings, without the nesting that a region of autocast counts."""
        for device, enabled, dtype in self.devices:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(self.cached)

    def caches(self) -> bool:
        """Return whether casts of weights are kept."""
        return self.cached and any(enabled for _, enabled, _ in self.devices)


class Untouched:
    """What torch's state in this thread was, to be put back; and a module's, if one is given.

    The context managers of torch are Python: a Ctrl-C may fall between what they have set and the block that would
    undo it. Put back in the outermost `finally`, where all is well already unless something has interrupted, this
    repairs whatever a single interruption has left. Putting back twice changes nothing.

    Args:
        module: Whose train/eval flags and registered buffers are noted; None for neither.
        conditions: `Conditions` that the work will meet again, for the generators and torch's cache of parametrized
            weights that it will set; None if it sets none.
    """

    def __init__(self, module: nn.Module | None = None, conditions: Any = None):
        self._grad = torch.is_grad_enabled()
        self._autocast = Autocast.now()
        self._modes = _len_torch_function_stack()
        self._hooks = _top_saved_tensors_default_hooks(True)
        self._conditions = conditions
        self._generators = conditions.generator_states() if conditions is not None and conditions.generators else None
        self._weights = parametrize._cache_enabled, parametrize._cache
        modules = [] if module is None else list(module.modules())
        self._flags = [(m, m.training) for m in modules]
        self._buffers = [(m._buffers, dict(m._buffers)) for m in modules if m._buffers]

    def put_back(self) -> None:
        """Put back what is not as it was."""
        while _len_torch_function_stack() > self._modes:
            _pop_mode()
        while (top := _top_saved_tensors_default_hooks(True)) is not None and top != self._hooks:
            _pop_saved_tensors_default_hooks()
        torch.set_grad_enabled(self._grad)
        if Autocast.now() != self._autocast:
            self._autocast.set()
        if self._conditions is not None and self._conditions.sets_weights(self._weights[0]):
            parametrize._cache_enabled, parametrize._cache = self._weights
        if self._conditions is not None and self._generators is not None:
            self._conditions.set_generators(self._generators)
        for module, flag in self._flags:
            if module.training != flag:
                module.training = flag
        for live, noted in self._buffers:
            if any(live.get(name) is not buffer for name, buffer in noted.items()):
                live.update(noted)


@contextmanager
def untouched(module: nn.Module | None = None, conditions: Any = None) -> Iterator[None]:
    """Put back what `Untouched` notes at the end of the block, however it ends."""
    noted = Untouched(module, conditions)
    try:
        yield
    finally:
        noted.put_back()
