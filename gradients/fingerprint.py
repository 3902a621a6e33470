"""Whether a state that was computed again is the state that was computed before, without keeping that one."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from loopgrad.gradients.graphs import is_floating

_AT_ONCE = 16  # pairs that are compared together, for each operation has its price
_Mark = tuple[Tensor, Tensor]  # of the rows of a leaf: their numbers, and their sizes
_Pair = tuple[int, Tensor, Tensor, Tensor, float]  # the step, the mark of then, the numbers of now, and the epsilon


class Fingerprints:
    """Notes a number per row of each leaf of a state, and compares them with those of a state that should be the same.

    The number is z q / sqrt(n), with z a leaf's row of n numbers and q a fixed vector of cosines: one product per
    state, and no state kept. A difference of z shows in it in proportion to its size. Up to epsilon^(2/3) of the dtype
    (3 % in 16 bits), relative to the largest number of the row, it is put down to rounding: rows apart, or one sample
    of 1e38 would pass whatever becomes of the others. What a recursion has forgotten as far as that is not seen; it has
    then forgotten as much of the gradient.

    Args:
        rounding: Epsilon to assume at least, where other kernels may have computed the state.
    """

    def __init__(self, rounding: float = 0.0) -> None:
        self._rounding = rounding
        self._noted: dict[int, list[_Mark]] = {}
        self._passing: dict[int, list[_Mark]] = {}
        self._weights: dict[Any, Tensor] = {}
        self._compared: list[_Pair] = []
        self._missed: list[Tensor] = []  # of some comparisons, the first step that was not met; else infinity

    def note(self, step: int, leaves: Sequence[Any]) -> None:
        """Note the state before update number `step`."""
        self._noted[step] = self._marks(leaves)

    def meet(self, step: int, leaves: Sequence[Any]) -> None:
        """Compare the state with what was noted of it; if nothing was, note it until `compare` has been there."""
        if step in self._noted or step in self._passing:
            self._compare(step, leaves)
        else:
            self._passing[step] = self._marks(leaves)

    def compare(self, step: int, leaves: Sequence[Any]) -> None:
        """Compare the state before update number `step`, as it is now, with what was noted; nothing waits for it."""
        self._compare(step, leaves)
        self._passing.pop(step, None)

    @torch.no_grad()
    def _compare(self, step: int, leaves: Sequence[Any]) -> None:
        known, size = self._noted.get(step) or self._passing.get(step), 0
        for mark, (rows, eps) in zip(known, _matrices(leaves), strict=False) if known else ():
            self._compared.append((step, *mark, self._numbers(rows), eps))
            size += rows.numel()
        # not held for longer, nor until they outweigh a state
        if len(self._compared) >= _AT_ONCE or sum(3 * len(now) for *_, now, _ in self._compared) >= size:
            self._fold()

    def _fold(self) -> None:
        groups: dict[Any, list[_Pair]] = {}
        for pair in self._compared:
            step, then, _, now, eps = pair
            if then.shape == now.shape and then.dtype == now.dtype:
                groups.setdefault((eps, now.dtype, now.device), []).append(pair)
            else:
                self._missed.append(torch.tensor(float(step)))
        self._compared = []
        for (eps, _, device), group in groups.items():
            numbers, *marks, _ = zip(*group, strict=True)
            then, size, now = map(torch.cat, marks)
            # filled on the device, which is so not waited for
            each = zip(numbers, marks[0], strict=True)
            steps = torch.cat([torch.full((len(it),), float(step), device=device) for step, it in each])
            allowed = size * min(max(self._rounding, eps) ** (2 / 3), 0.03)
            # where both have left the numbers there is no saying
            met = (now == then) | ~(now.isfinite() | then.isfinite()) | ((now - then).abs() < allowed)
            self._missed.append(torch.where(met, torch.inf, steps).amin())

    @torch.no_grad()
    def judge(self, owner: str, verify: str) -> None:
        """Raise or warn if a state was not met again, and forget what came of it.

        Raises:
            RuntimeError: verify="raise", naming the update and what to look for.
        """
        self._fold()
        missed, self._missed = self._missed, []
        if verify == "off" or not missed:
            return
        # here the device is waited for
        steps = torch.stack([step.to(missed[0].device) for step in missed])
        if bool((steps == torch.inf).all()):
            return
        first = min(steps.tolist())
        message = (
            f"{owner} did not meet the state before update {first:.0f} again, so the gradient is wrong: the cell "
            "gave other values when it was run again. Look for Python state that changes from call to call (a counter, "
            "a cache in a list), a generator of its own, tensors that were changed since the forward pass, or a kernel "
            "that is not deterministic (torch.use_deterministic_algorithms(True) finds it); carry what changes in the "
            "state, or use BPTT()"
        )
        if verify == "raise":
            raise RuntimeError(message)
        warnings.warn(message, stacklevel=2)

    @torch.no_grad()
    def _marks(self, leaves: Sequence[Any]) -> list[_Mark]:
        return [(self._numbers(rows), vector_norm(rows, torch.inf, dim=1)) for rows, _ in _matrices(leaves)]

    def _numbers(self, rows: Tensor) -> Tensor:
        key = rows.shape[1], rows.dtype, rows.device
        if key not in self._weights:
            wide = torch.arange(1, key[0] + 1, dtype=torch.float32, device=rows.device)
            self._weights[key] = (torch.cos(2.4 * wide) / key[0] ** 0.5).to(rows.dtype)
        return torch.mv(rows, self._weights[key])


def _matrices(leaves: Sequence[Any]) -> Iterator[tuple[Tensor, float]]:
    """Give the floating leaves as (rows, numbers), each with the epsilon of its dtype."""
    for leaf in leaves:
        if is_floating(leaf) and leaf.numel() and not leaf.is_meta:
            eps = torch.finfo(leaf.dtype).eps
            leaf = torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf
            leaf = leaf.float() if leaf.dtype.itemsize < 4 else leaf  # where products neither overflow nor round much
            yield leaf.reshape(leaf.shape[0] if leaf.dim() > 1 else 1, -1), eps


def marks_of(leaves: Sequence[Any]) -> tuple[int, int, int]:
    """Return the bytes of a mark of a state, of what waits to be compared, and of comparing it, beside each other."""
    found = [leaf for leaf in leaves if is_floating(leaf) and leaf.numel()]
    rows = [leaf.shape[0] if leaf.dim() > 1 else 1 for leaf in found]
    sizes = [leaf.numel() * (2 if leaf.is_complex() else 1) for leaf in found]
    wide = [max(4, leaf.itemsize // (2 if leaf.is_complex() else 1)) for leaf in found]
    numbers = sum(count * item for count, item in zip(rows, wide, strict=True))
    weights = sum(size // count * item for size, count, item in zip(sizes, rows, wide, strict=True))
    # the fewest states that are as many as are compared at once, or whose marks outweigh one
    states = min(-(-_AT_ONCE // len(found)), -(-sum(sizes) // (3 * sum(rows)))) if found else 0
    whole = (leaf.itemsize >= 4 and leaf.is_contiguous() for leaf in found)
    copies = [0 if it else size * item for it, size, item in zip(whole, sizes, wide, strict=True)]
    # of each pair of numbers side by side, their sizes and steps, the difference, its size and what is allowed
    return 2 * numbers, weights + 3 * states * numbers, max([9 * states * numbers, *copies])


def is_landmark(step: int, num_steps: int) -> bool:
    """Return whether the state before update `step` is one of some sixteen to be compared, the last among them."""
    return (num_steps - step) % (-(-num_steps // 16)) == 0
