"""Flattening a state or an inputs tree: any nesting of tuples, lists, dicts, named tuples and dataclasses.

Built on torch's own pytree; dataclasses need no registration, and plain containers take a shorter way.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils import _pytree as pytree

Leaves = list[Any]
Unflatten = Callable[[Leaves], Any]
_PART = re.compile(r"\['(.*?)'\]|\[(.*?)\]|\.(\w+)")


def flatten(tree: Any) -> tuple[Leaves, Unflatten]:
    """Return the leaves of `tree` in a fixed order and the function that rebuilds the tree from such leaves."""
    if tree is None or isinstance(tree, torch.Tensor):
        return [tree], lambda leaves: leaves[0]
    if (kind := type(tree)) is tuple or kind is list:  # by hand: updates flatten their state, and pytree takes 10 us
        return _flatten_parts(tree, kind)
    if kind is dict:
        keys = list(tree)
        return _flatten_parts(tree.values(), lambda values: dict(zip(keys, values, strict=True)))
    if _is_dataclass(tree):
        return _flatten_dataclass(tree)
    nodes, spec = pytree.tree_flatten(tree)
    if not any(_is_dataclass(node) for node in nodes):
        return nodes, lambda leaves: pytree.tree_unflatten(leaves, spec)
    return _flatten_parts(nodes, lambda values: pytree.tree_unflatten(list(values), spec))


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


def dotted_names(tree: Any) -> list[str]:
    """Return the names of the leaves of `tree`: "z_H", "0", nested "a.b"; "" where the tree is a leaf itself."""
    return [".".join("".join(part) for part in _PART.findall(path)) for path, _ in leaves_with_names(tree, "")]


def tensors(tree: Any) -> list[torch.Tensor]:
    """Return the tensor leaves of `tree`, in the order of `flatten`."""
    return [leaf for leaf in flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def map_tensors(fn: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
    """Return `tree` with `fn` applied to each tensor leaf and every other leaf as it is."""
    leaves, unflatten = flatten(tree)
    return unflatten([fn(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves])


def own_containers(values: Any) -> Any:
    """Return a tree with the same leaves in containers of its own, for a cell that fills those it is given.

    A tree whose class is `read_only` is handed on as it is: whoever reads it sees to this.
    """
    plain = values is None or isinstance(values, torch.Tensor) or getattr(values, "read_only", False)
    return values if plain else map_tensors(lambda leaf: leaf, values)


def apart(leaves: Leaves) -> tuple[list[torch.Tensor], Leaves]:
    """Return the tensors among leaves, and the leaves with a mark in the place of each tensor; see `together`."""
    rest = [torch.Tensor if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)], rest


def together(found: Iterable[torch.Tensor], rest: Leaves) -> Leaves:
    """Return the leaves that `apart` has taken apart."""
    queue = iter(found)
    return [next(queue) if leaf is torch.Tensor else leaf for leaf in rest]


def _is_dataclass(node: Any) -> bool:
    return dataclasses.is_dataclass(node) and not isinstance(node, type)


def _flatten_parts(parts: Iterable[Any], build: Callable[[Iterable[Any]], Any]) -> tuple[Leaves, Unflatten]:
    leaves: Leaves = []
    ends: list[tuple[int, Unflatten]] = []
    for part in parts:
        found, unflatten = flatten(part)
        leaves += found
        ends.append((len(leaves), unflatten))

    def rebuild(new_leaves: Leaves) -> Any:
        start, values = 0, []
        for end, unflatten in ends:
            values.append(unflatten(new_leaves[start:end]))
            start = end
        return build(values)

    return leaves, rebuild


def _flatten_dataclass(node: Any) -> tuple[Leaves, Unflatten]:
    names = [field.name for field in dataclasses.fields(node)]

    def build(values: Iterable[Any]) -> Any:
        new = object.__new__(type(node))  # no __init__: fields with init=False and __post_init__ keep their values
        for name, value in vars(node).items() if hasattr(node, "__dict__") else ():
            object.__setattr__(new, name, value)
        for name, value in zip(names, values, strict=True):
            object.__setattr__(new, name, value)
        return new

    return _flatten_parts([getattr(node, name) for name in names], build)
