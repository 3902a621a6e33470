"""Positions as samples of their own: where they are in the streams of a state, and what their verdicts say together.

A looped language model settles token by token, and the cycles that were published of one are those of single tokens
(Geiping et al. 2025, arXiv 2502.05171). One residual over all positions of a sample hides them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from loopgrad.analysis.summaries import Array, screen
from loopgrad.gradients.checks import is_int

PER = ("sample", "position")
LETTERS = {"converged": ".", "converging": ",", "diverging": "!", "too short": "?", "chaotic": "x"}


def check_per(per: Any, position_dim: Any) -> None:
    """Raise ValueError where `per` is none of PER, or says "sample" and there is a `position_dim`."""
    if per not in PER:
        raise ValueError(f"per={per!r} must be 'sample' or 'position'")
    if per == "sample" and position_dim is not None:
        raise ValueError(f"position_dim={position_dim!r} is read with per='position' alone")


@dataclass(frozen=True)
class Places:
    """Where the positions are in each stream, once its batch has been moved to dimension 0.

    Attributes:
        dims: By the name of a stream; empty where samples are whole.
    """

    dims: dict[str, tuple[int, ...]]

    @classmethod
    def of(
        cls,
        per: str,
        names: Sequence[str],
        leaves: Sequence[torch.Tensor],
        batch_dims: Sequence[int | None],
        position_dim: Any,
    ) -> "Places":
        """Return them.

        Args:
            per: One of PER.
            names: Of the streams.
            leaves: The streams as they were given.
            batch_dims: Dimension of the batch in each.
            position_dim: An int, or several in a tuple, such as those of rows and columns; or a mapping from the name
                of a stream to these. None for dimension 1 of streams (batch, positions, ...).

        Raises:
            TypeError: position_dim holds something other than ints.
            ValueError: A stream has no such dimension, or the streams have different numbers of positions.
        """
        if per == "sample":
            return cls({})
        if isinstance(position_dim, Mapping) and set(position_dim) != set(names):
            raise ValueError(f"position_dim names {sorted(position_dim)}, the streams are {list(names)}")
        found, sizes = {}, {}
        for name, leaf, batch_dim in zip(names, leaves, batch_dims, strict=True):
            own = _dims_of(name, leaf, batch_dim or 0, position_dim)
            sizes[name] = tuple(leaf.shape[dim] for dim in own)
            found[name] = tuple(dim + (dim < (batch_dim or 0)) for dim in own)
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"the streams have different positions, {sizes}, which cannot be judged jointly: name those of one "
                "kind by latent="
            )
        return cls(found)

    @property
    def axes(self) -> int:
        """Leading dimensions of a stream that are its rows, with the positions next to the batch."""
        return 1 + len(next(iter(self.dims.values()), ()))

    def second(self, name: str, leaf: torch.Tensor) -> torch.Tensor:
        """Return a stream (batch, ...) as a view (batch, *positions, ...), or as it is where samples are whole."""
        dims = self.dims.get(name, ())
        after = tuple(range(1, 1 + len(dims)))
        if dims == after or leaf.dim() <= max(dims):  # one that has lost dimensions is refused by its shape
            return leaf
        return leaf.movedim(dims, after)


def _dims_of(name: str, leaf: torch.Tensor, batch_dim: int, position_dim: Any) -> tuple[int, ...]:
    """Return the dimensions of the positions in a stream as it was given."""
    given = position_dim[name] if isinstance(position_dim, Mapping) else position_dim
    own = (1,) if given is None else given if isinstance(given, tuple) else (given,)
    if not own or not all(map(is_int, own)):
        raise TypeError(f"position_dim must hold ints, dimensions of the streams, got {position_dim!r}")
    shape, rank = tuple(leaf.shape), leaf.dim()
    if any(not -rank <= dim < rank for dim in own) or given is None and rank < 3:
        raise ValueError(
            f"stream {name} of shape {shape} has no position dimension, and per='position' needs streams (batch, "
            "positions, ...): name those that have one by latent=, say which dimension it is by position_dim=, or "
            "judge whole samples, per='sample'"
        )
    own = tuple(dim % rank for dim in own)
    if batch_dim in own or len(set(own)) < len(own):
        raise ValueError(
            f"position_dim={position_dim!r} of stream {name}, shape {shape}: dimension {batch_dim} is the batch, and "
            "each dimension is named once: give others by position_dim="
        )
    return own


@dataclass(frozen=True)
class PositionVerdicts:
    """The verdicts of one stream, position by position: a map, shares, and where the positions of a sample disagree.

    Made by `Verdicts.by_position` of a trace that was recorded with per="position".

    Attributes:
        stream: Its name, or "joint".
        label: (samples, positions), one of LABELS each.
        row: Row of the batch that each sample was, int (samples,).
        share: By label, the fraction of all positions.
        commonest: (samples,), the commonest label of each sample, the first of LABELS where two are as common.
        odd: (samples, positions) bool, where a position has another verdict than the commonest of its sample.
        disagree: (samples,) bool, whether a sample has such positions.

    Reference:
        Geiping et al. 2025, arXiv 2502.05171 (tokens that converge, orbit and slide).

    Example:
        >>> import torch
        >>> from loopgrad.analysis import classify, record
        >>> from loopgrad.gradients import Stationary
        >>> cell = Stationary(lambda z, x: z * torch.tensor([[0.5], [-1.0]]))  # one token shrinks, one turns its sign
        >>> trace = record(cell, torch.ones(1, 2, 4), None, 40, lags=4, per="position")
        >>> classify(trace)["state"].by_position().label.tolist()
        [['converged', 'cycle']]
    """

    stream: str
    label: Array
    row: Array
    share: dict[str, float]
    commonest: Array
    odd: Array
    disagree: Array

    @classmethod
    def of(cls, stream: str, label: Array, row: Array, labels: Sequence[str]) -> "PositionVerdicts":
        """Return them, given labels (samples, positions) out of `labels`."""
        counts = np.stack([(label == it).sum(axis=1) for it in labels])  # (labels, samples)
        commonest = np.array(labels, dtype=object)[counts.argmax(axis=0)].astype(str)
        odd = label != commonest[:, None]
        share = {it: float(n.sum()) / max(1, label.size) for it, n in zip(labels, counts, strict=True) if n.any()}
        return cls(stream, label, row, share, commonest, odd, odd.any(axis=1))

    def __repr__(self) -> str:
        """Draw a map, a line per sample and a sign per position, with a key that says how many positions it is of."""
        samples, positions = self.label.shape
        apart = int(self.disagree.sum())
        title = f"PositionVerdicts of {self.stream}: {samples} samples of {positions} positions, {apart} of them mixed"
        title += "\n" + ", ".join(f"{_sign(it)} {it} {100 * share:.1f} %" for it, share in self.share.items())
        rows = [
            [str(row), "".join(map(_sign, labels[:80])) + "..." * (positions > 80), f"{100 * odd.mean():.0f}"]
            for row, labels, odd in zip(self.row, self.label, self.odd, strict=True)
        ]
        return screen(title, ["row", "verdicts", "% odd"], rows)


def _sign(label: str) -> str:
    return LETTERS.get(label, label[0])
