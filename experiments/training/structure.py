"""Comparing what a file holds with what it should hold: names, types, shapes and dtypes, but no values."""

from typing import Any

from torch import Tensor

from loopgrad.experiments.conf.annotations import shown
from loopgrad.experiments.training.tensor_files import odd


def misfit(found: Any, wanted: Any, name: str = "", passed: tuple[str, ...] = ()) -> str:
    """Return in what way `found` is not built as `wanted` is, naming the first such part; "" where it is.

    Args:
        found: Nested dicts, lists, tensors and plain values out of a file.
        wanted: The like of which it should be.
        name: Of this part, for the message.
        passed: Parts that are checked elsewhere: they must be there, and of the right type.
    """
    if isinstance(wanted, Tensor):
        return _other_tensor(found, wanted, name)
    if isinstance(wanted, dict):
        if not isinstance(found, dict):
            return f"{name or 'it'} is a {type(found).__name__}, not a dict"
        if missing := [key for key in wanted if key not in found]:
            return f"{name and name + '.'}{missing[0]} is missing"
        if unknown := [key for key in found if key not in wanted]:
            return f"{name and name + '.'}{shown(unknown[0])} is nothing that belongs there"
        pairs = [(found[key], wanted[key], f"{name and name + '.'}{key}") for key in wanted]
        return next((m for f, w, n in pairs if (m := _part(f, w, n, passed))), "")
    if isinstance(wanted, list | tuple):
        if not isinstance(found, list | tuple):
            return f"{name} is a {type(found).__name__}, not a list"
        if len(found) != len(wanted):
            return f"{name} has {len(found)} entries, not {len(wanted)}"
        pairs = [(f, w, f"{name}[{i}]") for i, (f, w) in enumerate(zip(found, wanted, strict=True))]
        return next((m for f, w, n in pairs if (m := _part(f, w, n, passed))), "")
    if type(found) is not type(wanted):
        return f"{name} is a {type(found).__name__}, not a {type(wanted).__name__}"
    return ""


def _part(found: Any, wanted: Any, name: str, passed: tuple[str, ...]) -> str:
    if name in passed:
        return "" if type(found) is type(wanted) else f"{name} is a {type(found).__name__}"
    return misfit(found, wanted, name, passed)


def _other_tensor(found: Any, wanted: Tensor, name: str) -> str:
    if not isinstance(found, Tensor):
        return f"{name} is a {type(found).__name__}, not a tensor"
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        has, needs = (f"{tuple(it.shape)} {str(it.dtype).removeprefix('torch.')}" for it in (found, wanted))
        return f"{name} is {has}, not {needs}"
    reason = odd(found)
    return f"{name} {reason}" if reason else ""
