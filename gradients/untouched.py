"""Leaving the state of torch, and the flags and buffers of a module, as they were, whatever interrupts the work."""

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._C._autograd import _pop_saved_tensors_default_hooks, _top_saved_tensors_default_hooks
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils import _python_dispatch as dispatch


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


@dataclass(frozen=True)
class Dispatching:
    """The modes of dispatch in this thread: how many, and what torch notes of them."""

    count: int
    flags: dict[str, bool]

    @classmethod
    def now(cls) -> "Dispatching":
        """Return those of now."""
        flags = {name: value for name, value in vars(dispatch).items() if name.startswith("_is_in_")}
        return cls(torch._C._len_torch_dispatch_stack(), flags)

    def put_back(self) -> None:
        """Take modes off that an interruption has left."""
        if self == Dispatching.now():
            return
        while torch._C._len_torch_dispatch_stack() > self.count:
            torch._C._pop_torch_dispatch_stack(None)
        # the flags are those of all threads: what is false by now another one has ended
        for name in (name for name, noted in self.flags.items() if not noted):
            setattr(dispatch, name, False)
        if hasattr(dispatch, "set_is_in_mode_without_ignore_compile_internals"):  # the compiler's own note of a flag
            noted = vars(dispatch)["_is_in_any_mode_without_ignore_compile_internals"]
            dispatch.set_is_in_mode_without_ignore_compile_internals(noted)


class Mode(TorchFunctionMode):
    """A mode that ends with the stack of modes as it began, although an interruption may have lost or left some."""

    def __enter__(self) -> Any:
        """Enter the mode."""
        self._below = _get_current_function_mode_stack()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        """Leave the mode."""
        _set_modes(self._below)


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
        self._modes, self._dispatching = _get_current_function_mode_stack(), Dispatching.now()
        self._hooks = _top_saved_tensors_default_hooks(True)
        self._conditions = conditions
        self._generators = conditions.generator_states() if conditions is not None and conditions.generators else None
        self._weights = parametrize._cache_enabled, parametrize._cache
        modules = [] if module is None else list(module.modules())
        self._flags = [(m, m.training) for m in modules]
        self._buffers = [(m._buffers, dict(m._buffers)) for m in modules if m._buffers]

    def put_back(self) -> None:
        """Put back what is not as it was."""
        _set_modes(self._modes)
        self._dispatching.put_back()
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

    # used as a context manager. A class, and no generator: one that is not gone on with, because an interruption fell
    # just before that, would put things back later, when it is freed
    def __enter__(self) -> "Untouched":
        """Begin the block."""
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Put back, however the block has ended."""
        finish_generators(error)
        self.put_back()


def finish_generators(error: BaseException | None) -> None:
    """Have generators that an interruption has left behind put back now what they would put back later.

    The frames of the interruption's traceback hold them; other errors keep their frames, for debuggers.
    """
    link: BaseException | None = error
    while link is not None:
        if not isinstance(link, Exception):
            traceback.clear_frames(link.__traceback__)
        link = link.__context__


def _set_modes(modes: list[Any]) -> None:
    now = _get_current_function_mode_stack()
    if len(now) != len(modes) or any(a is not b for a, b in zip(now, modes, strict=True)):
        for _ in now:
            _pop_mode()
        for mode in modes:
            _push_mode(mode)
