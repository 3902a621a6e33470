"""Samples that have stopped: the differentiated updates leave their state as it is, to the last bit."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


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
        pairs = [(old, new) for old, new in zip(self._leaves, after, strict=False) if _floating(old) and _floating(new)]
        if not pairs or len(self._leaves) != len(after) or any(old.shape != new.shape for old, new in pairs):
            return None
        if self._versions != [_version(leaf) for leaf in self._leaves]:
            return None
        batches = {old.shape[0] if old.dim() else None for old, _ in pairs}
        by_sample = len(batches) == 1 and None not in batches
        with torch.no_grad():
            found = [old == new for old, new in pairs]
            rows = [same.unsqueeze(1).flatten(1).all(dim=1) if by_sample else same.all().view(1) for same in found]
            return torch.stack(rows).all(dim=0) if len(rows) > 1 else rows[0]


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def _version(leaf: Any) -> int:
    if torch.compiler.is_compiling():  # which traces neither of these, and lets nothing be written to in secret
        return 0
    return leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else 0
