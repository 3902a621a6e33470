"""Making a result known to torch's own trees, in which its wrappers look for the tensors that a module returns."""

import dataclasses
from collections.abc import Callable
from typing import Any

from torch.utils import _pytree as pytree

from loopgrad.gradients import tree


class _Rest:
    """What of a result is no leaf; two are equal if the leaves have the same names."""

    def __init__(self, names: tuple[str, ...], build: Callable[[list[Any]], Any]):
        self.names, self.build = names, build

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rest) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)


def register_result(kind: type[Any], whole: tuple[str, ...]) -> None:
    """Have torch see the leaves of a dataclass, those of dataclasses in its fields too.

    DistributedDataParallel(static_graph=True) exchanges no gradients for the tensors of an object it cannot look into.

    Args:
        kind: The dataclass.
        whole: Names of fields that are handed on as the same object: backward may write to it.
    """
    shown = [field.name for field in dataclasses.fields(kind) if field.name not in whole]

    def flatten(result: Any) -> tuple[list[Any], _Rest]:
        values = {name: getattr(result, name) for name in shown}
        leaves, unflatten = tree.flatten(values)
        names = tuple(name for name, _ in tree.leaves_with_names(values, ""))
        return leaves, _Rest(names, lambda new: dataclasses.replace(result, **unflatten(new)))

    def with_keys(result: Any) -> tuple[list[tuple[Any, Any]], _Rest]:
        leaves, rest = flatten(result)
        return [(pytree.MappingKey(name), leaf) for name, leaf in zip(rest.names, leaves, strict=True)], rest

    pytree.register_pytree_node(
        kind, flatten, lambda leaves, rest: rest.build(list(leaves)), flatten_with_keys_fn=with_keys
    )
