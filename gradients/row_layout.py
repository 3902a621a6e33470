"""A state as a matrix: one row per sample, all leaves side by side, in a precision in which sums can be trusted."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients.graphs import is_floating


class RowLayout:
    """The way between the leaves of a state and a matrix (rows, features).

    Args:
        leaves: Leaves of a state, each floating tensor (batch, ...); what is not floating has no place in the matrix.
        per_sample: One row per sample; else one row for the whole batch.

    Attributes:
        dtype: Dtype of the matrix: float32, or float64 if a leaf has it.

    Raises:
        ValueError: per_sample, and the leaves have no first dimension in common.
        TypeError: A leaf is complex.
    """

    def __init__(self, leaves: Sequence[Any], per_sample: bool):
        self._floating = [is_floating(leaf) for leaf in leaves]
        leaves = list(filter(is_floating, leaves))
        batches = {leaf.shape[0] if leaf.dim() else None for leaf in leaves}
        if per_sample and (len(batches) != 1 or None in batches):
            shapes = [tuple(leaf.shape) for leaf in leaves]
            raise ValueError(
                f"the leaves of state have shapes {shapes} and no first dimension in common, so they cannot be taken "
                "sample by sample: give every leaf the shape (batch, ...), say where its batch is, such as "
                "batch_dim=(1, 0), or take scope='batch'"
            )
        if any(leaf.is_complex() for leaf in leaves):
            raise TypeError("a leaf of state is complex, and linear solves are written for real ones: use BPTT()")
        self.batch = next(iter(batches)) if per_sample else None
        self.dtype = torch.float32
        for leaf in leaves:
            self.dtype = torch.promote_types(self.dtype, leaf.dtype)
        self._like = [(leaf.shape, leaf.dtype, leaf.device) for leaf in leaves]
        # counted here: of an empty batch torch cannot say what -1 would be
        self._sizes = [leaf.shape[1:].numel() if per_sample else leaf.numel() for leaf in leaves]

    @property
    def width(self) -> int:
        """How many features a row has."""
        return sum(self._sizes)

    def join(self, leaves: Sequence[Any]) -> Tensor:
        """Return the matrix of the leaves of a state, or of its floating ones alone; None stands for zeros."""
        count, parts = (self.batch if self.batch is not None else 1), []
        floating = list(leaves)
        if len(leaves) > len(self._like):
            floating = [leaf for leaf, moves in zip(leaves, self._floating, strict=True) if moves]
        if len(floating) == 1 and floating[0] is not None:
            return floating[0].to(self.dtype).reshape(count, self._sizes[0])
        for leaf, size, (shape, _, device) in zip(floating, self._sizes, self._like, strict=True):
            found = torch.zeros(shape, dtype=self.dtype, device=device) if leaf is None else leaf.to(self.dtype)
            parts.append(found.reshape(count, size))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def split(self, matrix: Tensor, carried: Sequence[Any] | None = None) -> list[Any]:
        """Return the leaves of a matrix, each in its own shape and dtype; those without a place as in `carried`."""
        parts = matrix.split(self._sizes, dim=1) if len(self._sizes) > 1 else [matrix]
        found = [part.reshape(shape).to(dtype) for part, (shape, dtype, _) in zip(parts, self._like, strict=True)]
        queue, rest = iter(found), carried if carried is not None else [None] * len(self._floating)
        return [next(queue) if moves else other for moves, other in zip(self._floating, rest, strict=True)]

    def masked(self, leaves: Sequence[Any], keep: Tensor) -> list[Any]:
        """Return the leaves with zeros in the rows that are not to be kept, whatever they hold."""
        return [self._masked(leaf, keep) if is_floating(leaf) else leaf for leaf in leaves]

    def _masked(self, leaf: Tensor, keep: Tensor) -> Tensor:
        rows = keep if self.batch is None else keep.view(-1, *[1] * (leaf.dim() - 1))
        return torch.where(rows, leaf, torch.zeros_like(leaf))
