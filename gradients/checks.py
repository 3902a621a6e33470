"""Checks that the estimators share: of arguments, of tensors changed in place, of a second derivative."""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch

from loopgrad.gradients import tree
from loopgrad.gradients.graphs import is_floating


def is_int(value: Any, least: int | None = None) -> TypeGuard[int]:
    """Return whether a value is an int, and at least `least`; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is an int or a float; True and False are neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_int(owner: str, name: str, value: Any, least: int) -> None:
    """Raise ValueError, naming the argument of `owner`, unless it is an int of at least `least`."""
    if not is_int(value, least):
        raise ValueError(f"{owner}({name}={value!r}) must be an int of at least {least}")


def check_choice(owner: str, name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ValueError, naming the argument of `owner`, unless it is one of `choices`."""
    if value not in choices:
        *first, last = map(repr, choices)
        raise ValueError(f"{owner}({name}={value!r}) must be {', '.join(first)} or {last}")


def only_one(owner: str, hint: str, **given: Any) -> tuple[str, Any]:
    """Return the name and the value of the argument that is not None; raise ValueError if it is not exactly one."""
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        *first, last = given
        raise ValueError(f"{owner} takes one of {', '.join(first)} and {last}, got {named or 'none'}: {hint}")
    return next(iter(named.items()))


def refuse_second_derivative(owner: str) -> None:
    """Raise RuntimeError in a backward pass of which autograd would record a graph."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{owner} cannot be differentiated twice (backward got create_graph=True): use BPTT()")


def versions_of(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Return how often each tensor has been written to, for `check_unchanged`."""
    return [version_of(tensor) for tensor in tensors]


def version_of(tensor: torch.Tensor) -> int:
    """Return how often a tensor has been written to; torch does not count that of inference tensors."""
    return 0 if tensor.is_inference() else tensor._version


def check_unchanged(tensors: Sequence[torch.Tensor], versions: list[int], consequence: str) -> None:
    """Raise RuntimeError if the cell has written to one of its arguments since `versions` were taken."""
    if versions_of(tensors) != versions:
        raise RuntimeError(
            f"the cell changes its state, inputs or a parameter in place, so {consequence}: "
            "write z + f(z) instead of z.add_(f(z)), or use BPTT()"
        )


def check_call(state: Any, num_steps: Any) -> None:
    """Raise if `num_steps` is no number of updates, or a state has nothing to differentiate."""
    if not is_int(num_steps):
        raise TypeError(f"num_steps must be an int, the number of updates, got {num_steps!r}")
    if num_steps < 0:
        raise ValueError(f"num_steps must be at least 0, got {num_steps}")
    if not any(map(is_floating, tree.flatten(state)[0])):
        found = [f"{name}: {said(leaf)}" for name, leaf in tree.leaves_with_names(state, "state")]
        raise TypeError(f"state holds no floating tensor, so there is nothing to differentiate: {', '.join(found)}")


def said(leaf: Any) -> str:
    """Return what an error says of a leaf."""
    return str(leaf.dtype) if isinstance(leaf, torch.Tensor) else type(leaf).__name__


def refuse_complex(owner: str, tensors: Sequence[torch.Tensor]) -> None:
    """Raise TypeError if a tensor that is differentiated by is complex, for an estimator that takes real tangents."""
    for tensor in tensors:
        if tensor.requires_grad and tensor.is_complex():
            raise TypeError(
                f"{owner} takes tangents along real numbers, and a tensor of shape {tuple(tensor.shape)} that requires "
                f"grad is {tensor.dtype}: use CheckpointedBPTT(), or keep its real and imaginary parts as two tensors"
            )
