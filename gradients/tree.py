"""Flattening a state or an inputs tree: any nesting of tuples, lists, dicts, named tuples and dataclasses.

Built on torch's own pytree; dataclasses need no registration.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

Leaves = list[Any]
Unflatten = Callable[[Leaves], Any]


def flatten(tree: Any) -> tuple[Leaves, Unflatten]:
    """Return the leaves of `tree` in a fixed order and the function that rebuilds the tree from such leaves."""
    if isinstance(tree, torch.Tensor):
        return [tree], _only
    nodes, spec = pytree.tree_flatten(tree)
    if not any(_is_dataclass(node) for node in nodes):
        return nodes, lambda leaves: pytree.tree_unflatten(leaves, spec)
    parts = [_flatten_dataclass(node) if _is_dataclass(node) else ([node], _only) for node in nodes]

    def unflatten(leaves: Leaves) -> Any:
        rebuilt, start = [], 0
        for part, build in parts:
            rebuilt.append(build(leaves[start : start + len(part)]))
            start += len(part)
        return pytree.tree_unflatten(rebuilt, spec)

    return [leaf for part, _ in parts for leaf in part], unflatten


def leaves_with_names(tree: Any, name: str) -> list[tuple[str, Any]]:
    """Return (name, leaf) pairs such as ("state['z_H']", tensor), in the order of `flatten`."""
    nodes, _ = pytree.tree_flatten_with_path(tree)
    named: list[tuple[str, Any]] = []
    for path, node in nodes:
        here = name + pytree.keystr(path)
        if _is_dataclass(node):
            for field in dataclasses.fields(node):
                named += leaves_with_names(getattr(node, field.name), f"{here}.{field.name}")
        else:
            named.append((here, node))
    return named


def tensors(tree: Any) -> list[torch.Tensor]:
    """Return the tensor leaves of `tree`, in the order of `flatten`."""
    return [leaf for leaf in flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def map_tensors(fn: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
    """Return `tree` with `fn` applied to each tensor leaf and every other leaf as it is."""
    leaves, unflatten = flatten(tree)
    return unflatten([fn(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves])


def _is_dataclass(node: Any) -> bool:
    return dataclasses.is_dataclass(node) and not isinstance(node, type)


def _flatten_dataclass(node: Any) -> tuple[Leaves, Unflatten]:
    names = [field.name for field in dataclasses.fields(node)]
    leaves, unflatten = flatten([getattr(node, name) for name in names])

    def build(new_leaves: Leaves) -> Any:
        new = object.__new__(type(node))  # no __init__: fields with init=False and __post_init__ keep their values
        for name, value in vars(node).items() if hasattr(node, "__dict__") else ():
            object.__setattr__(new, name, value)
        for name, value in zip(names, unflatten(new_leaves), strict=True):
            object.__setattr__(new, name, value)
        return new

    return leaves, build


def _only(leaves: Leaves) -> Any:
    return leaves[0]
