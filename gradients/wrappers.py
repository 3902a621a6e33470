"""What a wrapper hands its calls on to: members of a cell are read there, and calls go through the wrapper."""

from torch import nn


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside of what torch.compile, data-parallel training and the like have put around it.

    A wrapper is a module whose `_orig_mod` (torch.compile) or `module` (DistributedDataParallel and its kin, engines,
    averages) is what it calls, and that has no `period` of its own.
    """
    while (inner := _inside(module)) is not None:
        module = inner
    return module


def _inside(module: nn.Module) -> nn.Module | None:
    inner = _child(module, "_orig_mod")
    if inner is not None:
        return inner
    inner = _child(module, "module")
    if inner is None or type(module).__module__.startswith("torch."):
        return inner
    # a class that nobody knows: a wrapper of a cell if what it holds has a cycle and it says nothing of its own
    return inner if not hasattr(module, "period") and hasattr(unwrapped(inner), "period") else None


def _child(module: nn.Module, name: str) -> nn.Module | None:
    return module._modules[name] if name in module._modules else None  # a scripted module's dict has no get
