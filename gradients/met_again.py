"""Whether undoing updates has come back to the states that the recursion went through."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import is_floating
from loopgrad.gradients.invertible import invertible
from loopgrad.gradients.wide import widened

# share of a state that rounding may come to
TOLERANCE = 0.1


class MetAgain:
    """Judges states as they are undone: those that are known by comparison, those of rounding arithmetic by their size.

    In floating point z + 1e38 is 1e38, and 1e38 - 1e38 is 0: what z was is lost, yet beside 1e38 no first state is far
    from another. So the rounding of the largest state undone so far must stay below a tenth of each state before it.
    This costs a maximum per update, and the device is waited for where a state is known.

    Args:
        cell: The cell, an `Invertible`.
        verify: "raise", "warn" or "off".
        last: Leaves of the last state.
    """

    def __init__(self, cell: FunctionalCell, verify: str, last: Sequence[Any]):
        self._cell, self._verify, self._last = cell, verify, list(last)
        self._rounds = verify != "off" and not invertible(cell.cell).exact
        self._begin(self._last)

    @torch.no_grad()
    def undone(self, state: Any) -> None:
        """Take a state as it was reconstructed, or better as it is known to have been."""
        self._count += 1
        if self._rounds:
            size = _largest(self._verified(state))
            self._lost |= (size > 0) & (self._eps * self._size > TOLERANCE * size)  # of zeros nothing is lost
            self._size = torch.maximum(self._size, size)

    @torch.no_grad()
    def judge(self, state: Any, kept: Sequence[Any], what: str) -> None:
        """Compare a state as it was reconstructed with what it was; the next is undone from there.

        Raises:
            RuntimeError: verify="raise", and it is another, or the digits of some state before were lost.
        """
        if self._verify == "off":
            return
        self.undone(self._cell.unflatten_state(list(kept)))
        worst = self._difference(state, kept)
        if worst > (self._allowed() if self._rounds else 0.0):
            self._say(
                f"did not meet {what} again (largest difference {worst:.2g} of the largest value), so the gradient is "
                "wrong: the cell gave other values when it was run again, or its forward does not undo what it does. "
                "Look for a generator of its own, a kernel that is not deterministic "
                "(torch.use_deterministic_algorithms(True) finds it), Python state that changes from call to call, a "
                "state that is not finite or beyond 2^20, where exact arithmetic ends, or a cell of your own whose "
                "arithmetic rounds: that one says exact = False; or use CheckpointedBPTT()"
            )
        elif self._rounds and self._lost:
            self._say(
                f"cannot undo an update: between {what} and the last one undone before, the state grew so much that "
                "its rounding exceeds a tenth of what it was, so the gradient is wrong. Keep the cell's image bounded "
                "(an overflow?), use arithmetic='exact' where the state stays below 2^20, or CheckpointedBPTT()"
            )
        self._begin(kept)

    def _begin(self, leaves: Sequence[Any]) -> None:
        self._count = 0
        if self._rounds:
            found = self._verified(self._cell.unflatten_state(list(leaves)))
            self._eps = max((torch.finfo(leaf.dtype).eps for leaf in found), default=0.0)
            self._size = _largest(found)
            self._lost = torch.zeros_like(self._size, dtype=torch.bool)

    def _allowed(self) -> float:
        """Return the difference that is put down to rounding.

        Two thirds of the digits, for a cell may multiply it on the way back, or as much as the arithmetic of the
        coupling does by itself, which comes to the tolerance at its `safe_length`.
        """
        safe = invertible(self._cell.cell).safe_length
        used = min(1.0, self._count / safe) if safe else 0.0
        return min(TOLERANCE, max(self._eps ** (1 / 3), 10 * self._eps ** (1 - used) * TOLERANCE**used))

    def _difference(self, state: Any, kept: Sequence[Any]) -> float:
        """Return the largest difference, relative to the largest value in the state that is known and in the last."""
        unflatten = self._cell.unflatten_state
        met, given, end = map(self._verified, (state, unflatten(list(kept)), unflatten(self._last)))
        finite = all(bool(leaf.isfinite().all()) for leaf in self._last if is_floating(leaf))
        worst = 0.0
        for mine, true in zip(met, given, strict=True):
            if not finite:  # where the recursion itself has left the numbers, nothing can be met again
                known = mine.isfinite() & true.isfinite()
                mine, true = torch.where(known, mine, 0), torch.where(known, true, 0)
            if not torch.equal(mine, true):
                worst = max(worst, float((mine - true).abs().nan_to_num(math.inf).max()))
        # rounding is that of the values on the way, of which a first state of zeros says nothing
        return worst / max(1e-30, float(_largest([*given, *end])))

    def _verified(self, state: Any) -> list[Tensor]:
        return invertible(self._cell.cell).verified(state)

    def _say(self, fault: str) -> None:
        if self._verify == "raise":
            raise RuntimeError(f"ReversibleBPTT {fault}")
        warnings.warn(f"ReversibleBPTT {fault}", stacklevel=2)


def _largest(leaves: Sequence[Tensor]) -> Tensor:
    """Return the largest finite value."""
    sizes = [widened(leaf.abs().nan_to_num(0.0, posinf=0.0).max()) for leaf in leaves if leaf.numel()]
    return torch.stack([size.to(sizes[0].device) for size in sizes]).max() if sizes else torch.zeros(())
