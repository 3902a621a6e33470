"""Whether a state that was computed again is the state that was computed before, without keeping that one."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients.graphs import is_floating


class Fingerprints:
    """Notes a number per sample of a state, and compares it with that of a state that should be the same.

    The numbers are z q, with z a leaf as a matrix (batch, features) and q a fixed vector of cosines: one product with a
    vector per state, and no state kept. A difference of a sample shows in its number in proportion to its size. Up to
    the square root of the dtype's epsilon (3 % in 16 bits), relative to the sample's norm, it is put down to rounding.
    """

    def __init__(self) -> None:
        self._noted: dict[int, list[Tensor]] = {}
        self._weights: dict[Any, Tensor] = {}
        self._excess: list[Tensor] = []
        self._steps: list[int] = []

    @torch.no_grad()
    def note(self, step: int, leaves: Sequence[Any]) -> None:
        """Note the state before update number `step`."""
        self._noted[step] = [self._numbers(leaf) for leaf in leaves if is_floating(leaf) and not leaf.is_meta]

    @torch.no_grad()
    def compare(self, step: int, leaves: Sequence[Any]) -> None:
        """Compare the state before update number `step`, as it is now, with what was noted; nothing waits for it."""
        for noted, leaf in zip(self._noted.get(step, ()), filter(is_floating, leaves), strict=False):
            now, size = self._numbers(leaf), torch.linalg.vector_norm(_matrix(leaf), dim=1)
            if now.shape != noted.shape:
                noted = torch.full_like(now, torch.inf)
            allowed = size * min(torch.finfo(leaf.dtype).eps ** 0.5, 0.03)
            # where both have left the numbers there is no saying
            met = (now == noted) | ~(now.isfinite() | noted.isfinite())
            excess = torch.where(met, 0.0, (now - noted).abs().nan_to_num(torch.inf) / allowed)
            self._excess.append(excess.max() if excess.numel() else excess.sum())
            self._steps.append(step)

    def judge(self, owner: str, verify: str) -> None:
        """Raise or warn if a state was not met again, and forget what was compared.

        Raises:
            RuntimeError: verify="raise", naming the update and what to look for.
        """
        excess, steps = self._excess, self._steps
        self._excess, self._steps = [], []
        if verify == "off" or not excess:
            return
        # the one time that the device is waited for
        found = torch.stack([each.to(excess[0]) for each in excess]).tolist()
        missed = [step for step, much in zip(steps, found, strict=True) if not much <= 1]
        if not missed:
            return
        message = (
            f"{owner} did not meet the state before update {min(missed)} again, so the gradient is wrong: the cell "
            "gave other values when it was run again. Look for Python state that changes from call to call (a counter, "
            "a cache in a list), a generator of its own, tensors that were changed since the forward pass, or a kernel "
            "that is not deterministic (torch.use_deterministic_algorithms(True) finds it); carry what changes in the "
            "state, or use BPTT()"
        )
        if verify == "raise":
            raise RuntimeError(message)
        warnings.warn(message, stacklevel=2)

    def _numbers(self, leaf: Tensor) -> Tensor:
        """One number for each sample."""
        matrix = _matrix(leaf)
        return torch.mv(matrix, self._cosines(matrix.shape[1], matrix))

    def _cosines(self, count: int, like: Tensor) -> Tensor:
        key = count, like.dtype, like.device
        if key not in self._weights:
            wide = torch.arange(1, count + 1, dtype=torch.float32, device=like.device)
            self._weights[key] = torch.cos(2.4 * wide).to(like.dtype)
        return self._weights[key]


def _matrix(leaf: Tensor) -> Tensor:
    """A leaf as (samples, features), in a precision in which products neither overflow nor round much."""
    leaf = torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf
    leaf = leaf.to(torch.promote_types(leaf.dtype, torch.float32)) if leaf.dtype.itemsize < 4 else leaf
    return leaf.reshape(leaf.shape[0], leaf.shape[1:].numel()) if leaf.dim() else leaf.reshape(1, 1)
