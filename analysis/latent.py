"""The latent state: the floating leaves of a state, the streams that analyses judge, by name.

What else a state holds is carried along as the cell gives it and never part of a residual or a vector: flags, counters
and token ids (ints and bools, as tensors or numbers), and None for a part that is absent.
"""

from collections.abc import Sequence
from typing import Any

import torch

from loopgrad.gradients import tree
from loopgrad.gradients.graphs import is_floating


def latent(state: Any) -> list[torch.Tensor]:
    """Return the floating leaves of a state."""
    return [leaf for leaf in tree.flatten(state)[0] if is_floating(leaf)]


def latent_names(state: Any) -> tuple[str, ...]:
    """Return the names of the floating leaves: "z_H", "0", nested "a.b", or "state" for a bare tensor.

    Raises:
        TypeError: There is none, or a leaf is neither floating nor to be carried along.
    """
    leaves = _named(state)
    names = tuple(name for name, leaf in leaves if is_floating(leaf))
    for name, leaf in leaves:
        carried = isinstance(leaf, torch.Tensor | int) or leaf is None
        if not names or not (is_floating(leaf) or carried):
            check_latent(name, leaf)
    return names


def stream_names(state: Any) -> tuple[str, ...]:
    """Return the names of the floating leaves, checked as those of streams."""
    names = latent_names(state)
    check_names(names)
    return names


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError where there is no stream, two have one name, or one is "joint", the name of all together."""
    if not names:
        raise ValueError("state has no tensors: there is nothing to record")
    if len(set(names)) < len(names) or "joint" in names:
        raise ValueError(f"the streams of state must have names of their own, other than 'joint', got {tuple(names)}")


def state_leaves(state: Any, names: Sequence[str]) -> list[torch.Tensor]:
    """Return the streams of `state`, checked: tensors (batch, ...), as many as there are names."""
    leaves = latent(state)
    if len(leaves) != len(names):
        found = [name for name, leaf in _named(state) if is_floating(leaf)]
        raise ValueError(
            f"the cell must return a state of the structure it was given, with the floating leaves {tuple(names)}: got "
            f"{tuple(found)}. What becomes a floating tensor must be one in the first state, such as zeros"
        )
    check_leaves(leaves, names)
    return leaves


def check_leaves(leaves: Sequence[Any], names: Sequence[str]) -> None:
    """Raise TypeError where a stream is not a floating tensor, ValueError where it has another batch size."""
    for name, leaf in zip(names, leaves, strict=True):
        check_latent(name, leaf)
        if leaf.dim() == 0 or leaf.shape[0] != leaves[0].shape[0]:
            raise ValueError(
                f"every leaf of state must be (batch, ...) with one batch size, got {name} of shape "
                f"{tuple(leaf.shape)}: say where the batch is, such as batch_dim=(1, 0)"
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
