"""A state as a matrix: one row per sample, all leaves side by side, in a precision in which sums can be trusted."""

from collections.abc import Sequence

import torch
from torch import Tensor


class RowLayout:
    """The way between the leaves of a state and a matrix (rows, features).

    Args:
        leaves: Floating tensors, each (batch, ...).
        per_sample: One row per sample; else one row for the whole batch.

    Attributes:
        dtype: Dtype of the matrix: float32, or float64 if a leaf has it.

    Raises:
        ValueError: per_sample, and the leaves have no first dimension in common.
        TypeError: A leaf is complex.
    """

    def __init__(self, leaves: Sequence[Tensor], per_sample: bool):
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

    def join(self, leaves: Sequence[Tensor | None]) -> Tensor:
        """Return the matrix of leaves, where None stands for zeros."""
        count, parts = (self.batch if self.batch is not None else 1), []
        if len(leaves) == 1 and leaves[0] is not None:
            return leaves[0].to(self.dtype).reshape(count, -1)
        for leaf, (shape, _, device) in zip(leaves, self._like, strict=True):
            found = torch.zeros(shape, dtype=self.dtype, device=device) if leaf is None else leaf.to(self.dtype)
            parts.append(found.reshape(count, -1))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def split(self, matrix: Tensor) -> list[Tensor]:
        """Return the leaves of a matrix, each in its own shape and dtype."""
        if len(self._like) == 1:
            shape, dtype, _ = self._like[0]
            return [matrix.reshape(shape).to(dtype)]
        sizes = [shape.numel() // matrix.shape[0] if matrix.shape[0] else 0 for shape, _, _ in self._like]
        parts = zip(matrix.split(sizes, dim=1), self._like, strict=True)
        return [part.reshape(shape).to(dtype) for part, (shape, dtype, _) in parts]

    def masked(self, leaves: Sequence[Tensor], keep: Tensor) -> list[Tensor]:
        """Return the leaves with zeros in the rows that are not to be kept, whatever they hold."""
        if self.batch is None:
            return [torch.where(keep, leaf, torch.zeros_like(leaf)) for leaf in leaves]
        return [torch.where(keep.view(-1, *[1] * (leaf.dim() - 1)), leaf, torch.zeros_like(leaf)) for leaf in leaves]
