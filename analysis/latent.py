"""The latent state: the leaves of a state that analyses judge, by name; all floating leaves, or those that are named.

What else a state holds is carried along as the cell gives it and never part of a residual or a vector: flags, counters
and token ids (ints and bools, as tensors or numbers), None for a part that is absent, and floating leaves that are no
latent state, such as accumulators, where `latent=` names those that are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loopgrad.gradients import tree
from loopgrad.gradients.graphs import is_floating


def latent(state: Any) -> list[torch.Tensor]:
    """Return the floating leaves of a state."""
    return [leaf for leaf in tree.flatten(state)[0] if is_floating(leaf)]


@dataclass(frozen=True)
class Streams:
    """Which floating leaves of a state are judged.

    Attributes:
        names: "z_H", "0", nested "a.b", or "state" for a bare tensor.
        floating: Names of all floating leaves.
    """

    names: tuple[str, ...]
    floating: tuple[str, ...]

    @classmethod
    def of(cls, state: Any, chosen: Any = None) -> "Streams":
        """Return the streams of a state.

        Args:
            state: The first one.
            chosen: `latent=` of the caller; None for all floating leaves.

        Raises:
            TypeError: There is none; chosen is no list of names, or names a leaf that is not floating; where it is
                None, a leaf is neither floating nor to be carried along.
            ValueError: A chosen name is that of no leaf.
        """
        leaves = _named(state)
        floating = tuple(name for name, leaf in leaves if is_floating(leaf))
        names = chosen_names([name for name, _ in leaves], chosen) if chosen is not None else floating
        for name, leaf in leaves:
            carried = chosen is not None or isinstance(leaf, torch.Tensor | int) or leaf is None
            if not names or name in names or not (is_floating(leaf) or carried):
                check_latent(name, leaf)
        return cls(names, floating)

    @classmethod
    def checked(cls, state: Any, chosen: Any = None) -> "Streams":
        """Return the streams of a state, whose names are checked too."""
        streams = cls.of(state, chosen)
        check_names(streams.names)
        return streams

    def leaves(self, state: Any) -> list[torch.Tensor]:
        """Return the streams of a state, checked: tensors (batch, ...), in a state of the first one's structure."""
        leaves = latent(state)
        if len(leaves) != len(self.floating):
            found = [name for name, leaf in _named(state) if is_floating(leaf)]
            raise ValueError(
                f"the cell must return a state of the structure it was given, with the floating leaves {self.floating}"
                f": got {tuple(found)}. What becomes a floating tensor must be one in the first state, such as zeros"
            )
        leaves = self.chosen(leaves)
        check_leaves(leaves, self.names)
        return leaves

    def picked(self, state: Any) -> list[torch.Tensor]:
        """Return the streams of a state as they are."""
        return self.chosen(latent(state))

    def chosen(self, values: list[Any]) -> list[Any]:
        """Return those of values of the floating leaves that are of streams."""
        if self.names == self.floating:
            return values
        return [value for name, value in zip(self.floating, values, strict=True) if name in self.names]


def chosen_names(names: Sequence[str], chosen: Any) -> tuple[str, ...]:
    """Return those of some names that `latent=` chooses, by the name of a leaf or of a part with all its leaves.

    Raises:
        TypeError: It is no list of names.
        ValueError: It is empty, or names what is not there.
    """
    wanted = list(chosen) if isinstance(chosen, list | tuple | set | frozenset) else chosen
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise TypeError(f"latent={chosen!r} must be names of leaves, such as latent=('{names[0]}',), or None for all")
    parts = {name: [name] if name in names else [it for it in names if it.startswith(f"{name}.")] for name in wanted}
    unknown = [name for name, found in parts.items() if not found]
    if unknown or not wanted:
        raise ValueError(f"latent={chosen!r} names {unknown or 'no leaf'}: the leaves of state are {tuple(names)}")
    every = {name for found in parts.values() for name in found}
    return tuple(name for name in names if name in every)


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError where there is no stream, two have one name, or one is "joint", the name of all together."""
    if not names:
        raise ValueError("state has no tensors: there is nothing to record")
    if len(set(names)) < len(names) or "joint" in names:
        raise ValueError(f"the streams of state must have names of their own, other than 'joint', got {tuple(names)}")


def check_leaves(leaves: Sequence[Any], names: Sequence[str]) -> None:
    """Raise TypeError where a stream is not a floating tensor, ValueError where it has another batch size."""
    for name, leaf in zip(names, leaves, strict=True):
        check_latent(name, leaf)
        if leaf.dim() == 0 or leaf.shape[0] != leaves[0].shape[0]:
            raise ValueError(
                f"every leaf of state must be (batch, ...) with one batch size, got {name} of shape "
                f"{tuple(leaf.shape)}: say where the batch is, such as batch_dim=(1, 0), or which leaves are the "
                "latent state, such as latent=('h',)"
            )


def check_latent(name: str, leaf: Any) -> None:
    """Raise TypeError where a stream is not a floating tensor."""
    if not is_floating(leaf):
        what = leaf.dtype if isinstance(leaf, torch.Tensor) else type(leaf).__name__
        raise TypeError(
            f"stream {name} of state must be a floating tensor, got {what}: move it to inputs, or record the floating "
            "state that it goes with"
        )


def check_shapes(leaves: Sequence[torch.Tensor], before: Sequence[torch.Tensor], names: Sequence[str]) -> None:
    """Raise ValueError where an update gave a stream another shape than it had."""
    for name, leaf, old in zip(names, leaves, before, strict=True):
        if leaf.shape == old.shape:
            continue
        shapes = f"from {tuple(old.shape)} to {tuple(leaf.shape)}"
        if old.shape[:1] == (1,) and leaf.shape[1:] == old.shape[1:]:
            raise ValueError(
                f"state has batch 1 and inputs have {len(leaf)}, so the cell changed the shape of {name} {shapes}: "
                f"give state the batch of inputs, as state.expand({len(leaf)}, ...) does"
            )
        raise ValueError(
            f"the cell changed the shape of the state's leaf {name} {shapes}, and states of two shapes cannot be "
            "compared: let it have its last shape from the start, with a counter of what is filled, or keep what "
            "grows out of state"
        )


def _named(state: Any) -> list[tuple[str, Any]]:
    names = (name or "state" for name in tree.dotted_names(state))
    return list(zip(names, tree.flatten(state)[0], strict=True))
