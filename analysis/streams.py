"""The streams of a state, by name, and the scalars recorded of them, which stay on the device until the end."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from loopgrad.gradients import tree

_PART = re.compile(r"\['(.*?)'\]|\[(.*?)\]|\.(\w+)")


def stream_names(state: Any) -> tuple[str, ...]:
    """Return the names of the leaves of `state`: "z_H", "0", nested "a.b", or "state" for a bare tensor.

    Raises:
        ValueError: Two leaves get one name, or one is called "joint", the name kept for all streams together.
    """
    paths = [path for path, _ in tree.leaves_with_names(state, "")]
    names = tuple(".".join("".join(part) for part in _PART.findall(path)) or "state" for path in paths)
    if not names:
        raise ValueError("state has no tensors: there is nothing to record")
    if len(set(names)) < len(names) or "joint" in names:
        raise ValueError(f"the streams of state must have names of their own, other than 'joint', got {names}")
    return names


def state_leaves(state: Any, names: Sequence[str]) -> list[torch.Tensor]:
    """Return the leaves of `state`, checked: floating tensors (batch, ...), as many as there are names.

    Raises:
        TypeError: A leaf is not a floating tensor.
        ValueError: The leaves differ in batch size or number.
    """
    leaves = tree.flatten(state)[0]
    if len(leaves) != len(names):
        raise ValueError(
            f"the cell must return a state of the structure it was given, {names}: got {len(leaves)} leaves"
        )
    for name, leaf in zip(names, leaves, strict=True):
        if not isinstance(leaf, torch.Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
            what = leaf.dtype if isinstance(leaf, torch.Tensor) else type(leaf).__name__
            raise TypeError(f"stream {name} of state must be a floating tensor, got {what}: move it to inputs")
        if leaf.dim() == 0 or leaf.shape[0] != leaves[0].shape[0]:
            raise ValueError(
                f"every leaf of state must be (batch, ...) with one batch size, got {name} of shape {tuple(leaf.shape)}"
            )
    return leaves


def distances(
    leaves: Sequence[torch.Tensor], others: Sequence[torch.Tensor] | None, upcast: torch.dtype
) -> list[torch.Tensor]:
    """Return ||leaf - other|| of each sample and stream, (batch,), in `upcast` or wider; norms if no others."""
    found = []
    for index, leaf in enumerate(leaves):
        leaf = leaf.detach()
        wide = leaf.to(torch.promote_types(leaf.dtype, upcast))
        if others is not None:
            other = others[index].detach()
            wide = wide - other.to(torch.promote_types(other.dtype, upcast))
        found.append(torch.linalg.vector_norm(wide.reshape(wide.shape[0], -1), dim=1))
    return found


class Scalars:
    """Collects one (batch,) tensor per kind, stream and time, and transfers all of them at once."""

    def __init__(self, upcast: torch.dtype):
        self.upcast = upcast
        self._keys: list[tuple[tuple[str, str], int]] = []
        self._values: list[torch.Tensor] = []

    def add(self, key: tuple[str, str], time: int, value: torch.Tensor) -> None:
        """Keep `value`, (batch,), of a (kind, stream) at a time; no synchronisation."""
        self._keys.append((key, time))
        self._values.append(value)

    def arrays(self, lengths: Mapping[str, int], names: Sequence[str], batch: int) -> dict[tuple[str, str], np.ndarray]:
        """Return (time, batch) float64 arrays by (kind, stream), nan where nothing was added."""
        found = {(kind, name): np.full((length, batch), np.nan) for kind, length in lengths.items() for name in names}
        dtype = torch.float32
        for value in self._values:
            dtype = torch.promote_types(dtype, value.dtype)
        rows = torch.stack([value.to(dtype) for value in self._values]).cpu().numpy().astype(np.float64)
        for (key, time), row in zip(self._keys, rows, strict=True):
            found[key][time] = row
        return found


class Ends:
    """Compares the states at the ends of cycles with those of earlier cycles; keeps one state per lag."""

    def __init__(self, scalars: Scalars, names: Sequence[str], lags: int, start: Sequence[torch.Tensor]):
        self._scalars, self._names, self._lags = scalars, names, lags
        self._states = [list(start)]  # the latest last
        self._move: list[torch.Tensor] | None = None

    def add(self, cycle: int, leaves: Sequence[torch.Tensor]) -> None:
        """Compare the leaves at the end of a cycle, counted from 0."""
        if not self._lags:
            return
        for lag, state in enumerate(reversed(self._states), 1):
            for name, value in zip(self._names, distances(leaves, state, self._scalars.upcast), strict=True):
                self._scalars.add((f"lag {lag}", name), cycle, value)
        pairs, upcast = zip(leaves, self._states[-1], strict=True), self._scalars.upcast
        move = [_flat(new, upcast) - _flat(old, upcast) for new, old in pairs]
        if self._move is not None:
            for name, now, before in zip(self._names, move, self._move, strict=True):
                self._scalars.add(("turning", name), cycle, (now * before.conj()).real.sum(dim=1))
        self._move, self._states = move, [*self._states, list(leaves)][-self._lags :]

    def lengths(self, cycles: int) -> dict[str, int]:
        """Return the kinds of scalars with their lengths, as `Scalars.arrays` wants them."""
        return {f"lag {lag}": cycles for lag in range(1, self._lags + 1)} | {"turning": cycles}


def _flat(leaf: torch.Tensor, upcast: torch.dtype) -> torch.Tensor:
    return leaf.detach().to(torch.promote_types(leaf.dtype, upcast)).reshape(leaf.shape[0], -1)
