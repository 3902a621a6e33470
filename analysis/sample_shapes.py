"""Shapes of one sample, as a plan is given them, and tensors of them for a batch."""

from typing import Any

import torch
from torch import Tensor


def check_shapes_of(name: str, shapes: Any) -> None:
    """Raise where `shapes` is no tree of shapes and tensors.

    Raises:
        TypeError: A leaf is something else.
        ValueError: A size is negative, or a tensor is sparse.
    """
    if isinstance(shapes, Tensor):
        if shapes.layout != torch.strided:
            raise ValueError(f"{name} has a tensor of layout {shapes.layout}: give its shape, or a dense one")
    elif is_shape(shapes):
        if any(size < 0 for size in shapes):
            raise ValueError(f"{name} has the shape {tuple(shapes)}: sizes are those of one sample, at least 0")
    elif isinstance(shapes, dict):
        for key, value in shapes.items():
            check_shapes_of(f"{name}[{key!r}]", value)
    elif isinstance(shapes, tuple | list) and not any(isinstance(size, int | float) for size in shapes):
        for i, value in enumerate(shapes):
            check_shapes_of(f"{name}[{i}]", value)
    elif shapes is not None:
        raise TypeError(
            f"{name}={shapes!r} must be the shape of one sample, a tuple of ints such as (81, 512), a tensor, or a "
            "dict, tuple or list of such"
        )


def is_shape(shapes: Any) -> bool:
    """Return whether a tree is a leaf: sizes."""
    return isinstance(shapes, tuple) and all(isinstance(size, int) and not isinstance(size, bool) for size in shapes)


def tensors_of(shapes: Any, batch: int, updates: int | None = None) -> Any:
    """Return a tree of tensors for a tree of shapes, which require grad, or for one of tensors, if these do."""
    front = (batch,) if updates is None else (updates, batch)
    if shapes is None:
        return None
    if isinstance(shapes, Tensor):
        return torch.zeros(*front, *shapes.shape, dtype=shapes.dtype, requires_grad=shapes.requires_grad)
    if is_shape(shapes):
        return torch.zeros(*front, *shapes, requires_grad=True)
    if isinstance(shapes, dict):
        return {key: tensors_of(value, batch, updates) for key, value in shapes.items()}
    made = [tensors_of(value, batch, updates) for value in shapes]
    return type(shapes)(*made) if hasattr(shapes, "_fields") else type(shapes)(made)
