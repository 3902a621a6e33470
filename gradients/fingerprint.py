"""Whether a state that was computed again is the state that was computed before, without keeping that one."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients.graphs import is_floating


class Fingerprints:
    """Notes one number per leaf of a state, and compares it with that of a state that should be the same.

    The number is r^T z q, with z the leaf as a matrix (batch, features) and r, q fixed vectors of cosines: one product
    with a vector per state, and no state kept. A difference of z shows in it in proportion to its size. Up to the
    square root of the dtype's epsilon, relative to |z|, it is put down to rounding.
    """

    def __init__(self) -> None:
        self._noted: dict[int, list[Tensor]] = {}
        self._weights: dict[Any, Tensor] = {}
        self._excess: list[Tensor] = []
        self._steps: list[int] = []

    @torch.no_grad()
    def note(self, step: int, leaves: Sequence[Any]) -> None:
        """Note the state before update number `step`."""
        self._noted[step] = [self._number(leaf) for leaf in leaves if is_floating(leaf) and not leaf.is_meta]

    @torch.no_grad()
    def compare(self, step: int, leaves: Sequence[Any]) -> None:
        """Compare the state before update number `step`, as it is now, with what was noted; nothing waits for it."""
        for noted, leaf in zip(self._noted.get(step, ()), filter(is_floating, leaves), strict=False):
            now, size = self._number(leaf), torch.linalg.vector_norm(leaf).to(noted.dtype)
            allowed = size * torch.finfo(leaf.dtype).eps ** 0.5
            finite = now.isfinite()
            met = (now == noted) | ~(finite | noted.isfinite())  # where both have left the numbers there is no saying
            self._excess.append(torch.where(met, 0.0, (now - noted).abs().nan_to_num(torch.inf) / allowed))
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

    def _number(self, leaf: Tensor) -> Tensor:
        leaf = torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf
        matrix = leaf.reshape(leaf.shape[0], -1) if leaf.dim() > 1 and leaf.numel() else leaf.reshape(1, -1)
        r, q = (self._cosines(n, leaf) for n in matrix.shape)
        return torch.dot(torch.mv(matrix.t(), r), q).to(torch.promote_types(leaf.dtype, torch.float32))

    def _cosines(self, count: int, like: Tensor) -> Tensor:
        key = count, like.dtype, like.device
        if key not in self._weights:
            wide = torch.arange(1, count + 1, dtype=torch.float32, device=like.device)
            self._weights[key] = torch.cos(2.4 * wide).to(like.dtype)
        return self._weights[key]
