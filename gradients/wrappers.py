"""What a wrapper hands its calls on to: members of a cell are read there, and calls go through the wrapper."""

from torch import nn


def unwrapped(module: nn.Module, member: str = "period") -> nn.Module:
    """Return the module inside of what torch.compile, data-parallel training and the like have put around it.

    A wrapper is a module whose `_orig_mod` (torch.compile) or `module` (DistributedDataParallel and its kin, engines,
    averages) is what it calls, and that has no `period`, or what `member` names, of its own.
    """
    while (inner := _inside(module, member)) is not None:
        module = inner
    return module


def _inside(module: nn.Module, member: str) -> nn.Module | None:
    inner = _child(module, "_orig_mod")
    if inner is not None:
        return inner
    inner = _child(module, "module")
    if inner is None or type(module).__module__.startswith("torch."):
        return inner
    # a class that nobody knows: a wrapper if what it holds has the member, and it says nothing of its own
    return inner if not hasattr(module, member) and hasattr(unwrapped(inner, member), member) else None


def _child(module: nn.Module, name: str) -> nn.Module | None:
    return module._modules[name] if name in module._modules else None  # a scripted module's dict has no get
