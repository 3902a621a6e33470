"""Where the batch is: the dimension of it in each leaf of a state and of inputs, checked against their shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from loopgrad.gradients import tree
from loopgrad.gradients.checks import is_int

WHOLE = (
    object()
)  # in place of a dimension: a tensor of inputs that is not cut into samples, but might look as if it were


@dataclass(frozen=True)
class BatchDims:
    """Which dimension is the batch, in the leaves of the state and in those of the inputs: `batch_dim` in full.

    A plain batch_dim, such as 1 or (1, 0), is that of the state; it stands for BatchDims(state=..., inputs=None). Only
    the default, batch_dim=0, takes dimension 0 of inputs for the batch as well, wherever it has the batch's size.

    Args:
        state: An int for all leaves; or a tree of them with the structure of the state, or the beginning of it, such as
            (1, 0) or {"h": 1, "z": 0}; None for a leaf that is no floating tensor and has no batch.
        inputs: The same for the tensors of inputs. None for one that has no batch, or that need not be cut: nothing is
            wrong then, but `ForwardGradient(perturb="weights")` has more noise in its gradient, an implicit gradient
            cannot take the rows of a sample that is not finite out of it, and spectra run the whole batch per sample.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import BatchDims, ForwardGradient, Stationary
        >>> cell = Stationary(lambda z, x: z / 2 + x)
        >>> z, x = torch.zeros(2, 3, 4), torch.ones(3, 4)  # (layers, batch, size) and (batch, size)
        >>> ForwardGradient()(cell, z, x, num_steps=8, batch_dim=BatchDims(state=1, inputs=0)).state.shape
        torch.Size([2, 3, 4])
    """

    state: Any = 0
    inputs: Any = None


def is_first(batch_dim: Any) -> bool:
    """Return whether this is the default: the batch is dimension 0."""
    return is_int(batch_dim) and batch_dim == 0


def state_dims(state: Any, batch_dim: Any) -> list[int | None]:
    """Return the dimension of the batch in each leaf of a state, None for a leaf without.

    Raises:
        TypeError: `batch_dim` holds something that is neither an int nor None.
        ValueError: It does not fit the state, a leaf lacks the dimension, or the leaves' batches differ in size.
    """
    given = batch_dim.state if isinstance(batch_dim, BatchDims) else batch_dim
    dims: list[int | None] = []
    for name, leaf, dim in _matched(state, given, "state"):
        floating = isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
        if not isinstance(leaf, Tensor) or not (leaf.dim() or floating):
            dim = None
        elif dim is None and floating:
            raise ValueError(
                f"batch_dim={batch_dim!r} says that {name} has no batch, and samples that share a floating leaf cannot "
                "be taken apart: give it a batch, or leave batch_dim out, which BPTT() and scope='batch' do not need"
            )
        dims.append(None if dim is None else _checked(name, leaf, dim, batch_dim))
    sizes = batch_sizes(state, dims)
    if len(set(sizes.values())) > 1:
        raise ValueError(f"batch_dim={batch_dim!r} gives the leaves of state batches of different sizes: {sizes}")
    return dims


def batch_sizes(state: Any, dims: Sequence[int | None]) -> dict[str, int]:
    """Return the size of the batch in each leaf of a state that has one, by the name of the leaf."""
    named = zip(tree.leaves_with_names(state, "state"), dims, strict=True)
    return {name: leaf.shape[dim] for (name, leaf), dim in named if dim is not None}


def input_dims(inputs: Any, batch_dim: Any, batch: int | None) -> list[Any]:
    """Return for each leaf of inputs the dimension of the batch; `WHOLE` where its first might be mistaken for it.

    Raises:
        TypeError: As `state_dims`.
        ValueError: `batch_dim` does not fit the inputs, or a dimension has not the size of the state's batch.
    """
    given = batch_dim.inputs if isinstance(batch_dim, BatchDims) else None
    dims: list[Any] = []
    for name, leaf, dim in _matched(inputs, given, "inputs"):
        if not isinstance(leaf, Tensor):
            dims.append(None)
        elif dim is None:
            dims.append(WHOLE if leaf.dim() and leaf.shape[0] == batch != 1 else None)
        else:
            dims.append(_checked(name, leaf, dim, batch_dim))
            if leaf.shape[dims[-1]] != batch:
                raise ValueError(
                    f"batch_dim={batch_dim!r} takes dimension {dim} of {name} for the batch: it has size "
                    f"{leaf.shape[dims[-1]]}, and the batch of the state {batch}. Give None for what has no batch"
                )
    return dims


def _matched(values: Any, dims: Any, what: str) -> list[tuple[str, Any, int | None]]:
    """Return (name, leaf, dimension) for each leaf of a tree, of whose structure dims has the beginning."""
    named = tree.leaves_with_names(values, what)
    entries = dict(zip(tree.dotted_names(dims), tree.flatten(dims)[0], strict=True))
    for dim in entries.values():
        if dim is not None and not is_int(dim):
            raise TypeError(f"batch_dim must hold ints, the dimensions of the batch, or None; for {what} got {dims!r}")
    matched, used = [], set()
    for (name, leaf), path in zip(named, tree.dotted_names(values), strict=True):
        own = next((entry for entry in entries if entry in ("", path) or path.startswith(f"{entry}.")), None)
        if own is not None:
            used.add(own)
            matched.append((name, leaf, entries[own]))
    if len(matched) < len(named) or len(used) < len(entries) and "" not in entries:
        raise ValueError(
            f"batch_dim={dims!r} does not fit {what}, whose leaves are {[name for name, _ in named]}: give one int for "
            "all of them, or one for each"
        )
    return matched


def _checked(name: str, leaf: Tensor, dim: int, batch_dim: Any) -> int:
    if not -leaf.dim() <= dim < leaf.dim():
        raise ValueError(
            f"batch_dim={batch_dim!r} takes dimension {dim} of {name} for the batch, and its shape is "
            f"{tuple(leaf.shape)}: give each leaf its own, such as batch_dim=(1, 0) or {{'h': 1, 'z': 0}}"
        )
    return dim % leaf.dim()
