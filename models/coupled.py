"""The part that invertible cells share: each update reads one copy of the state and changes the other.

What was read is still there after the update, so the same evaluation of the cell that made the new state undoes it.
A coupled recursion is another dynamical system than the cell's own; see each class for what the two share.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn

from loopgrad.gradients import Stationary, tree
from loopgrad.gradients.contract import period_of
from loopgrad.models.fixed_point import SCALE, Ratio, to_grid

Arithmetic = Literal["exact", "float64", "float32"]
Per = Literal["cycle", "update"]
STORED = {"exact": torch.float64, "float64": torch.float64, "float32": torch.float32}


@dataclass
class Coupled:
    """State of a coupled cell: two trees like the cell's own state, and the digits that damping them has lost.

    Attributes:
        current: z_t, what the next update reads.
        other: z_{t-1} (`Damped`, `Leapfrog`) or the velocity v_t (`Momentum`).
        lost: Trees of integers held in float64, one per damped copy; empty without damping or without exactness.
    """

    current: Any
    other: Any
    lost: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Note:
    """What undoing one update needs beside the state it led to.

    Attributes:
        touched: Which leaves the update changed.
        dropped: Words of lost digits that were full before this update, packed into bytes.
    """

    touched: tuple[bool, ...]
    dropped: tuple[Tensor, ...] = ()


class Known(torch.autograd.Function):
    """value = share * other + unit * added, where the value is known already and only the graph is wanted."""

    @staticmethod
    def forward(ctx: Any, other: Tensor, added: Tensor, value: Tensor, share: float, unit: float) -> Tensor:
        """Return the value."""
        ctx.factors = share, unit
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradients of other and added."""
        (gradient,), (share, unit) = gradients, ctx.factors
        return (
            gradient if share == 1 else gradient * share,
            gradient if unit == 1 else gradient * unit,
            None,
            None,
            None,
        )


class Coupling(nn.Module):
    """Base of the invertible cells; subclasses give the arithmetic of one leaf.

    Called as cell(state, inputs, step), where state is `Coupled` or, at first, a plain state of the wrapped cell.
    Estimators take a plain state too and then return a plain one.

    Attributes:
        exact: Whether an update is undone to the last bit.
        safe_length: Updates that can be undone one after the other; None for any number.
    """

    damped_copies = 0  # how many of the two copies are damped
    ratio: Ratio | None = None
    factor: float  # of the cell's image
    share: float  # that is kept of the other copy

    @property
    def unit(self) -> float:
        """The value of 1 in what `_scaled` returns."""
        return 1 / SCALE if self.exact else 1.0

    def __init__(self, cell: nn.Module, arithmetic: Arithmetic, per: Per, dtype: torch.dtype | None):
        super().__init__()
        name = type(self).__name__
        if not isinstance(cell, nn.Module):
            raise TypeError(
                f"{name}(cell=...) must be an nn.Module called as cell(state, inputs, step), got "
                f"{type(cell).__name__}: wrap a plain map fn(state, inputs) as Stationary(fn, parameters=...)"
            )
        if arithmetic not in STORED:
            raise ValueError(f"{name}(arithmetic={arithmetic!r}) must be 'exact', 'float64' or 'float32'")
        if per not in ("cycle", "update"):
            raise ValueError(f"{name}(per={per!r}) must be 'cycle' or 'update'")
        self.cell, self.arithmetic, self.per, self.dtype = cell, arithmetic, per, dtype

    @property
    def period(self) -> int:
        """Updates in a cycle: one where an update is a whole cycle of the wrapped cell."""
        return 1 if self.per == "cycle" else period_of(self.cell)

    @property
    def depth(self) -> int:
        """Blocks that one cycle applies."""
        return int(self.cell.depth)  # pyright: ignore[reportArgumentType]

    @property
    def exact(self) -> bool:
        """Whether an update is undone to the last bit."""
        return self.arithmetic == "exact"

    @property
    def safe_length(self) -> int | None:
        """Updates that can be undone one after the other before rounding has eaten the state; None for any number."""
        return None

    @property
    def cell_dtype(self) -> torch.dtype:
        """Dtype in which the wrapped cell sees the state."""
        if self.dtype is not None:
            return self.dtype
        closed = (t for m in self.cell.modules() if isinstance(m, Stationary) for t in m.closed_over)
        found = (t.dtype for t in (*self.cell.parameters(), *closed) if t.is_floating_point())
        return next(found, torch.get_default_dtype())

    def couple(self, state: Any) -> Coupled:
        """Return the coupled state to start from: both copies at `state`, or at rest; a coupled state as it is."""
        if isinstance(state, Coupled):
            return state
        current, other = tree.map_tensors(self._stored, state), tree.map_tensors(self._companion, state)
        lost = ()
        if self.ratio is not None:
            lost = tuple(tree.map_tensors(torch.zeros_like, current) for _ in range(self.damped_copies))
        return Coupled(current, other, lost)

    def read(self, state: Coupled) -> Any:
        """Return z_t of a coupled state, in the dtype of the wrapped cell."""
        return tree.map_tensors(lambda leaf: leaf.to(self.cell_dtype), state.current)

    def forward(self, state: Any, inputs: Any, step: int, undo: Note | None = None) -> Any:
        """Apply update number `step`, or undo it.

        Args:
            state: The state before the update; after it, if `undo` is given.
            inputs: What the wrapped cell reads.
            step: Number of the update.
            undo: What `note` said of the update.

        Returns:
            The state after the update. With `undo`: the state before it, whose leaves require grad if autograd is on,
            and the very state after it, with a graph from there.
        """
        state = self.couple(state)
        if undo is None:
            return self._advance(state, self._evaluate(state.current, inputs, step), step)
        stored, unflatten = tree.flatten(state.current)
        pairs = zip(stored, tree.flatten(state.other)[0], undo.touched, strict=True)
        current = [_leaf(self._read_by(*pair) if touched else pair[0]) for *pair, touched in pairs]
        update = self._evaluate(unflatten(current), inputs, step)
        before = self._retreat(state, current, [None if u is None else u.detach() for u in update], undo, step)
        return before, self._again(state, before, update)

    def note(self, state: Any, after: Coupled, step: int) -> Note:
        """Return what `forward` needs to undo update number `step`, which led from `state` to `after`."""
        state = self.couple(state)
        pairs = zip(tree.tensors(state.current), tree.tensors(after.current), strict=True)
        dropped = ()
        if self.ratio is not None and step > 0 and self._word_is_full(step):
            dropped = tuple(self.ratio.pack(leaf) for leaf in tree.tensors(state.lost))
        return Note(tuple(a is not b for a, b in pairs), dropped)

    def _evaluate(self, current: Any, inputs: Any, step: int) -> list[Tensor | None]:
        """What the image of z_t adds, per leaf; None for a leaf that the cell hands through."""
        start = z = tree.map_tensors(lambda leaf: leaf.to(self.cell_dtype), current)
        if self.per == "update":
            z = self.cell(z, inputs, step)
        else:
            period = period_of(self.cell)
            for i in range(period):
                z = self.cell(z, inputs, step * period + i)
        pairs = zip(tree.tensors(z), tree.tensors(start), strict=True)
        return [None if image is leaf else self._scaled(image) for image, leaf in pairs]

    def _advance(self, state: Coupled, update: list[Tensor | None], step: int) -> Coupled:
        (current, unflatten), other = tree.flatten(state.current), tree.flatten(state.other)[0]
        lost, unflatten_lost = tree.flatten(self._emptied(state.lost, step))
        for i, added in enumerate(update):
            if added is not None:
                own = lost[i :: len(current)]
                current[i], other[i], lost[i :: len(current)] = self._next(current[i], other[i], own, added)
        return Coupled(unflatten(current), unflatten(other), unflatten_lost(lost))

    def _retreat(
        self, after: Coupled, current: list[Tensor], update: list[Tensor | None], note: Note, step: int
    ) -> Coupled:
        unflatten = tree.flatten(after.current)[1]
        new, other = tree.flatten(after.current)[0], tree.flatten(after.other)[0]
        lost, unflatten_lost = tree.flatten(after.lost)
        with torch.no_grad():
            for i, added in enumerate(update):
                if added is not None:
                    own = lost[i :: len(new)]
                    other[i], lost[i :: len(new)] = self._before(new[i], other[i], own, added)
        if note.dropped and self.ratio is not None:
            lost = [self.ratio.unpack(packed) for packed in note.dropped]
        return Coupled(unflatten(current), unflatten([_leaf(leaf) for leaf in other]), unflatten_lost(lost))

    def _again(self, after: Coupled, before: Coupled, update: list[Tensor | None]) -> Coupled:
        (current, unflatten), other = tree.flatten(before.current), tree.flatten(before.other)[0]
        values = zip(tree.flatten(after.current)[0], tree.flatten(after.other)[0], strict=True)
        for i, (added, pair) in enumerate(zip(update, values, strict=True)):
            if added is not None:
                current[i], other[i] = self._joined(current[i], other[i], added, *pair)
        return Coupled(unflatten(current), unflatten(other), after.lost)

    def _emptied(self, lost: Any, step: int) -> Any:
        return tree.map_tensors(torch.zeros_like, lost) if self.ratio is not None and self._word_is_full(step) else lost

    def _word_is_full(self, step: int) -> bool:
        assert self.ratio is not None
        return step % (self.ratio.window * self.damped_copies) == 0

    def _stored(self, leaf: Tensor) -> Tensor:
        return to_grid(leaf) * (1 / SCALE) if self.exact else leaf.to(STORED[self.arithmetic]).clone()

    def _scaled(self, image: Tensor) -> Tensor:
        return to_grid(image, self.factor) if self.exact else image.to(STORED[self.arithmetic]) * self.factor

    def _companion(self, leaf: Tensor) -> Tensor:
        """The copy that no update has read yet."""
        return self._stored(leaf)

    def _read_by(self, current: Tensor, other: Tensor) -> Tensor:
        """What the update that led to this pair has read."""
        return other

    def _next(self, current: Tensor, other: Tensor, lost: list[Tensor], added: Tensor) -> tuple:
        raise NotImplementedError

    def _before(self, current: Tensor, other: Tensor, lost: list[Tensor], added: Tensor) -> tuple:
        raise NotImplementedError

    def _joined(self, current: Tensor, other: Tensor, added: Tensor, new: Tensor, new_other: Tensor) -> tuple:
        """The pair after an update, whose values are known, as a function of what led to it."""
        raise NotImplementedError

    def _damp(self, value: Tensor, lost: Tensor | None, factor: Fraction) -> tuple[Tensor, Tensor | None]:
        if self.ratio is None or lost is None:
            return value * float(factor), lost
        return self.ratio.times(value, lost)

    def _undamp(self, value: Tensor, lost: Tensor | None, factor: Fraction) -> tuple[Tensor, Tensor | None]:
        if self.ratio is None or lost is None:
            return value / float(factor), lost
        return self.ratio.undo(value, lost)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(torch.is_grad_enabled())
