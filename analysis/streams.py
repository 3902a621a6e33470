"""The scalars recorded of the streams of a state, which stay on the device until the end."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

ROWS = 64  # of a block
Place = tuple[torch.dtype, torch.device]
Slot = tuple[Place, int]


class Distance:
    """Norms of differences, in `upcast` or wider and in memory that is kept.

    Beside a running model, new memory costs more than the arithmetic.

    Args:
        upcast: The narrowest dtype.
        axes: Leading dimensions of a leaf that are its rows.
    """

    def __init__(self, upcast: torch.dtype, axes: int = 1):
        self._upcast, self._axes = upcast, axes
        self._memory: dict[Any, torch.Tensor] = {}

    def __call__(self, leaf: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
        """Return ||leaf - other|| of each row, (rows,); the norm of `leaf` if `other` is None."""
        leaf = leaf.detach()
        dtype = torch.promote_types(leaf.dtype, self._upcast)
        wide = leaf
        if other is not None:
            other = other.detach()
            dtype = torch.promote_types(other.dtype, dtype)
            wide = self._kept(leaf, dtype)
            # out= computes in the dtype of the operands: narrower ones are widened first
            torch.sub(leaf if leaf.dtype == dtype else wide.copy_(leaf), other, out=wide)
        elif leaf.dtype != dtype:
            wide = self._kept(leaf, dtype).copy_(leaf)
        return torch.linalg.vector_norm(by_rows(wide, self._axes), dim=1)

    def _kept(self, leaf: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        key = leaf.shape, dtype, leaf.device
        if key not in self._memory:
            with torch.inference_mode(False):  # such memory could not be written to outside
                self._memory[key] = torch.empty(leaf.shape, dtype=dtype, device=leaf.device)
        return self._memory[key]


def by_rows(leaf: torch.Tensor, axes: int = 1) -> torch.Tensor:
    """Return a leaf (batch, ...) as (batch, n), of `axes` leading dimensions (rows, n); either may be empty."""
    return leaf.reshape(leaf.shape[:axes].numel(), leaf.shape[axes:].numel())


def equal_rows(leaf: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return which samples have the same values in both, (batch,) bool on the device; nan is the same as nan."""
    leaf, other = leaf.detach(), other.detach()
    same = (leaf == other) | ((leaf != leaf) & (other != other))
    return by_rows(same).all(dim=1)


def short(dtype: torch.dtype) -> str:
    """Return the name of a dtype, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def version(tensor: torch.Tensor) -> int:
    """Return how many times a tensor was written in place; 0 under inference mode, where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def counted(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose writes torch counts: the very one, or a copy of one made under inference mode."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


class Scalars:
    """Collects one (rows,) tensor per kind, stream and time, and transfers all of them at once.

    They are copied into blocks: small tensors that stay would break up the memory that a running model gives back.
    """

    def __init__(self, upcast: torch.dtype):
        self.upcast = upcast
        self._keys: list[tuple[tuple[str, str], int, Slot]] = []
        self._blocks: dict[Place, list[torch.Tensor]] = {}
        self._used: dict[Place, int] = {}

    def add(self, key: tuple[str, str], time: int, value: torch.Tensor) -> "Slot":
        """Keep `value`, (rows,), of a (kind, stream) at a time; no synchronisation. Return where it is kept."""
        place = torch.promote_types(value.dtype, torch.float32), value.device
        row = self._used.get(place, 0)
        self._used[place] = row + 1
        if row % ROWS == 0:
            with torch.inference_mode(False):  # such memory could not be written to outside
                block = torch.empty(ROWS, value.shape[0], dtype=place[0], device=place[1])
                self._blocks.setdefault(place, []).append(block)
        self._blocks[place][-1][row % ROWS].copy_(value)
        slot = place, row
        self._keys.append((key, time, slot))
        return slot

    def again(self, key: tuple[str, str], time: int, slot: "Slot") -> None:
        """Keep for a (kind, stream) at a time what is kept already."""
        self._keys.append((key, time, slot))

    def arrays(self, lengths: Mapping[str, int], names: Sequence[str], rows: int) -> dict[tuple[str, str], np.ndarray]:
        """Return (time, rows) float64 arrays by (kind, stream), nan where nothing was added."""
        found = {(kind, name): np.full((length, rows), np.nan) for kind, length in lengths.items() for name in names}
        kept = {
            place: torch.cat(blocks)[: self._used[place]].cpu().numpy().astype(np.float64)
            for place, blocks in self._blocks.items()
        }
        for key, time, (place, number) in self._keys:
            found[key][time] = kept[place][number]
        return found


class Ends:
    """Compares the states at the ends of cycles with those of earlier cycles; keeps one state per lag."""

    def __init__(self, scalars: Scalars, names: Sequence[str], lags: int, distance: Distance, axes: int = 1):
        self._scalars, self._names, self._lags, self._distance, self._axes = scalars, names, lags, distance, axes
        self._states: list[list[torch.Tensor]] = []  # the latest last
        self._move: list[torch.Tensor] | None = None

    def start(self, leaves: Sequence[torch.Tensor], anew: bool) -> None:
        """Go on from these leaves, which take the place of the latest state, or with `anew` of all."""
        if anew:
            self._states, self._move = [], None
        if self._lags:
            self._states[-1:] = [list(leaves)]

    def add(self, cycle: int, leaves: Sequence[torch.Tensor]) -> None:
        """Compare the leaves at the end of a cycle, counted from 0."""
        if not self._lags:
            return
        for lag, state in enumerate(reversed(self._states), 1):
            for name, leaf, other in zip(self._names, leaves, state, strict=True):
                self._scalars.add((f"lag {lag}", name), cycle, self._distance(leaf, other))
        move = [self._flat(new) - self._flat(old) for new, old in zip(leaves, self._states[-1], strict=True)]
        if self._move is not None:
            for name, now, before in zip(self._names, move, self._move, strict=True):
                self._scalars.add(("turning", name), cycle, (now * before.conj()).real.sum(dim=1))
        self._move, self._states = move, [*self._states, list(leaves)][-self._lags :]

    def lengths(self, cycles: int) -> dict[str, int]:
        """Return the kinds of scalars with their lengths, as `Scalars.arrays` wants them."""
        return {f"lag {lag}": cycles for lag in range(1, self._lags + 1)} | {"turning": cycles}

    def _flat(self, leaf: torch.Tensor) -> torch.Tensor:
        return by_rows(leaf.detach().to(torch.promote_types(leaf.dtype, self._scalars.upcast)), self._axes)
