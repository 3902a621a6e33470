"""How far the differentiated updates have moved the state of each sample, and which they left to the last bit."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from loopgrad.gradients.checks import version_of
from loopgrad.gradients.graphs import is_floating
from loopgrad.gradients.wide import widened


class Before:
    """The leaves of a state, to be compared with those that updates make of it."""

    def __init__(self, leaves: Sequence[Any]):
        self._leaves = list(leaves)
        self._versions = [_version(leaf) for leaf in self._leaves]

    def stopped(self, after: Sequence[Any]) -> Tensor | None:
        """Return which samples have the same numbers in all floating leaves after, (batch,) bool on their device.

        One comparison of two states, without waiting for the device. Leaves without a first dimension in common are
        taken as one sample. Nothing is said (None) of states whose shapes differ, or that were written to.
        """
        pairs = self._pairs(after)
        with torch.no_grad():
            rows = _by_sample([old == new for old, new in pairs]) if pairs else []
            return torch.stack([same.all(dim=1) for same in rows]).all(dim=0) if rows else None

    def moved(self, after: Sequence[Any]) -> Tensor | None:
        """Return |after - before| / |after| over all floating leaves of a sample, (batch,); 0 where nothing moved.

        Of the same states as `stopped`, and as cheap.
        """
        pairs = self._pairs(after)
        if not pairs:
            return None
        with torch.no_grad():
            sizes = [_by_sample(found) for found in ([new - old for old, new in pairs], [new for _, new in pairs])]
            step, size = (torch.stack([widened(vector_norm(row, dim=1)) for row in rows]).norm(dim=0) for rows in sizes)
            return torch.where(step == 0, 0.0, step / size)

    def _pairs(self, after: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
        pairs = [
            (old, new) for old, new in zip(self._leaves, after, strict=False) if is_floating(old) and is_floating(new)
        ]
        if len(self._leaves) != len(after) or any(old.shape != new.shape for old, new in pairs):
            return []
        return pairs if self._versions == [_version(leaf) for leaf in self._leaves] else []


def _by_sample(leaves: list[Tensor]) -> list[Tensor]:
    """Return each leaf as (batch, ...), and without a first dimension in common as (1, ...)."""
    batches = {leaf.shape[0] if leaf.dim() else None for leaf in leaves}
    together = len(batches) > 1 or None in batches
    return [leaf.reshape(1, -1) if together else leaf.unsqueeze(1).flatten(1) for leaf in leaves]


def _version(leaf: Any) -> int:
    if torch.compiler.is_compiling():  # which traces neither of these, and lets nothing be written to in secret
        return 0
    return version_of(leaf) if isinstance(leaf, Tensor) else 0
