"""The part that invertible cells share: each update reads one copy of the state and changes the other.

What was read is still there after the update, so the same evaluation of the cell that made the new state undoes it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from loopgrad.gradients import Invertible, Note, Stationary, Undone, tree
from loopgrad.gradients.cell_call import check_cell
from loopgrad.gradients.checks import check_choice
from loopgrad.gradients.contract import period_of, run
from loopgrad.gradients.invertible import Gradients
from loopgrad.models.grid_arithmetic import SCALE, Ratio, plus, to_grid

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


class Coupling(Invertible):
    """Base of the invertible cells; subclasses give the arithmetic of one leaf.

    Called as cell(state, inputs, step), where state is `Coupled` or, at first, a plain state of the wrapped cell.
    Estimators take a plain state too and then return a plain one.
    """

    references: ClassVar[tuple[str, ...]] = ()
    rate_name: ClassVar[str]  # the argument that sets the strength of the coupling
    damped_copies = 0  # how many of the two copies are damped
    ratio: Ratio | None = None
    factor: float  # of the cell's image
    share: float  # that is kept of the other copy

    def __init__(self, cell: nn.Module, arithmetic: Arithmetic, per: Per, dtype: torch.dtype | None):
        super().__init__()
        name = type(self).__name__
        check_cell(cell, f"{name}(cell=...)")
        check_choice(name, "arithmetic", arithmetic, tuple(STORED))
        check_choice(name, "per", per, ("cycle", "update"))
        self.cell, self.arithmetic, self.per, self.dtype = cell, arithmetic, per, dtype
        self.exact = arithmetic == "exact"

    def extra_repr(self) -> str:
        """Return the rate and the arithmetic."""
        rate = f"{self.rate_name}={getattr(self, self.rate_name)}"
        return f"{rate}, arithmetic={self.arithmetic!r}, per={self.per!r}, dtype={self.dtype}"

    @property
    def period(self) -> int:
        """Updates in a cycle: one where an update is a whole cycle of the wrapped cell."""
        return 1 if self.per == "cycle" else period_of(self.cell)

    @property
    def depth(self) -> int:
        """Blocks that one cycle applies."""
        return int(self.cell.depth)  # pyright: ignore[reportArgumentType]

    @property
    def cell_dtype(self) -> torch.dtype:
        """Dtype in which the wrapped cell sees the state."""
        if self.dtype is not None:
            return self.dtype
        for module in self.cell.modules():
            own = module.closed_over if isinstance(module, Stationary) else module._parameters.values()
            for tensor in own:
                if tensor is not None and tensor.is_floating_point():
                    return tensor.dtype
        return torch.get_default_dtype()

    def couple(self, state: Any) -> Coupled:
        """Return the coupled state to start from: both copies at `state`, or at rest; a coupled state as it is."""
        if isinstance(state, Coupled):
            return state
        current, other = tree.map_tensors(self._stored, state), tree.map_tensors(self._companion, state)
        lost = ()
        if self.ratio is not None:
            lost = tuple(tree.map_tensors(torch.zeros_like, current) for _ in range(self.damped_copies))
        return Coupled(current, other, lost)

    def current(self, state: Coupled) -> Any:
        """Return z_t of a coupled state."""
        return state.current

    def read(self, state: Coupled) -> Any:
        """Return z_t of a coupled state, in the dtype of the wrapped cell."""
        return tree.map_tensors(lambda leaf: leaf.to(self.cell_dtype), state.current)

    def forward(self, state: Any, inputs: Any, step: int, undo: Note | None = None) -> Any:
        """Apply update number `step`, or undo it; see `Invertible.forward`."""
        state = self.couple(state)
        stored, unflatten = tree.flatten(state.current)
        dtype = self.cell_dtype
        if undo is None:
            reads = [_laid_out(leaf, dtype) for leaf in stored]
            return self._advance(state, self._images(unflatten(reads), reads, inputs, step), step)
        pairs = zip(stored, tree.flatten(state.other)[0], undo.touched, strict=True)
        current = [self._read_by(*pair) if touched else pair[0] for *pair, touched in pairs]
        reads = [_laid_out(leaf.detach(), dtype).requires_grad_(torch.is_grad_enabled()) for leaf in current]
        images = self._images(unflatten(reads), reads, inputs, step)
        with torch.no_grad():
            return Undone(self._retreat(state, current, images, undo), reads, images)

    def pull(self, images: list[Tensor | None], gradients: Gradients) -> tuple[Gradients, Gradients]:
        """Return the vector-Jacobian product of an update without the part through the cell; see `Invertible.pull`."""
        width = len(images)
        seeds, before = [], list(gradients[: 2 * width])
        for i, image in enumerate(images):
            seed = None
            if image is not None:
                sum_, before[i], before[width + i] = self._pulled(gradients[i], gradients[width + i])
                seed = None if sum_ is None else self._gradient_of_image(sum_, image.dtype)
            seeds.append(seed)
        return seeds, before

    def note(self, state: Any, after: Coupled, step: int) -> Note:
        """Return what `forward` needs to undo update number `step`, which led from `state` to `after`."""
        state = self.couple(state)
        pairs = zip(tree.tensors(state.current), tree.tensors(after.current), strict=True)
        dropped = ()
        if self.ratio is not None and step > 0 and self._word_is_full(step):
            dropped = tuple(self.ratio.pack(leaf) for leaf in tree.tensors(state.lost))
        return Note(tuple(a is not b for a, b in pairs), dropped)

    def verified(self, state: Coupled) -> list[Tensor]:
        """Return both copies; the digits lost before the first update are not part of what it was given."""
        return tree.tensors((state.current, state.other))

    def _images(self, start: Any, reads: list[Tensor], inputs: Any, step: int) -> list[Tensor | None]:
        """What the wrapped cell makes of its state `start`, per leaf; None for a leaf that it hands through."""
        period = period_of(self.cell) if self.per == "cycle" else 1
        z = run(self.cell, start, inputs, range(step * period, (step + 1) * period))
        return [None if image is leaf else image for image, leaf in zip(tree.tensors(z), reads, strict=True)]

    def _advance(self, state: Coupled, images: list[Tensor | None], step: int) -> Coupled:
        (current, unflatten), other = tree.flatten(state.current), tree.flatten(state.other)[0]
        lost, unflatten_lost = tree.flatten(state.lost)
        if self._word_is_full(step):
            lost = [torch.zeros_like(digits) for digits in lost]
        for i, image in enumerate(images):
            if image is not None:
                own = lost[i :: len(current)]
                current[i], other[i], lost[i :: len(current)] = self._next(current[i], other[i], own, image)
        return Coupled(unflatten(current), unflatten(other), unflatten_lost(lost))

    def _retreat(self, after: Coupled, current: list[Tensor], images: list[Tensor | None], note: Note) -> Coupled:
        (new, unflatten), other = tree.flatten(after.current), tree.flatten(after.other)[0]
        lost, unflatten_lost = tree.flatten(after.lost)
        for i, image in enumerate(images):
            if image is not None:
                own = lost[i :: len(new)]
                other[i], lost[i :: len(new)] = self._before(new[i], other[i], own, image)
        if note.dropped and self.ratio is not None:
            lost = [self.ratio.unpack(packed) for packed in note.dropped]
        return Coupled(unflatten(current), unflatten(other), unflatten_lost(lost))

    def _word_is_full(self, step: int) -> bool:
        return self.ratio is not None and step % (self.ratio.window * self.damped_copies) == 0

    def _stored(self, leaf: Tensor) -> Tensor:
        return to_grid(leaf) * (1 / SCALE) if self.exact else leaf.to(STORED[self.arithmetic]).clone()

    def _plus(self, base: Tensor, image: Tensor) -> Tensor:
        """Return base + factor * image."""
        if self.exact:
            return plus(base, image, self.factor)
        return base.add(image.to(base.dtype), alpha=self.factor)

    def _minus(self, sum_: Tensor, image: Tensor) -> Tensor:
        """The base of a sum that `_plus` has given."""
        if self.exact:
            return plus(sum_, image, -self.factor)
        return sum_.sub(image.to(sum_.dtype), alpha=self.factor)

    def _gradient_of_image(self, gradient: Tensor, dtype: torch.dtype) -> Tensor:
        """The derivative of `_plus` with respect to an image of this dtype, applied to a gradient."""
        return gradient.to(dtype) * self.factor if self.exact else (gradient * self.factor).to(dtype)

    def _companion(self, leaf: Tensor) -> Tensor:
        """The copy that no update has read yet."""
        return self._stored(leaf)

    def _read_by(self, current: Tensor, other: Tensor) -> Tensor:
        """What the update that led to this pair has read."""
        return other

    def _next(self, current: Tensor, other: Tensor, lost: list[Tensor], image: Tensor) -> tuple:
        """One leaf of both copies and its lost digits after an update: here the copies change places."""
        kept, digits = self._damp(other, lost[1:])
        return self._plus(kept, image), current, digits + lost[:1]

    def _before(self, current: Tensor, other: Tensor, lost: list[Tensor], image: Tensor) -> tuple:
        """The copy that an update has changed, and its lost digits, as they were before it."""
        before, digits = self._undamp(self._minus(current, image), lost[:1])
        return before, lost[1:] + digits

    def _pulled(self, current: Tensor | None, other: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the sum that holds the image and of the pair before an update, from those of the pair after."""
        return current, other, times(current, self.share)

    def _damp(self, value: Tensor, lost: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return share * value, and the lost digits of that one copy, if there are any."""
        if self.ratio is None or not lost:
            return value if self.share == 1 else value * self.share, lost
        value, digits = self.ratio.times(value, *lost)
        return value, [digits]

    def _undamp(self, value: Tensor, lost: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        if self.ratio is None or not lost:
            return value if self.share == 1 else value / self.share, lost
        value, digits = self.ratio.undo(value, *lost)
        return value, [digits]


def times(gradient: Tensor | None, factor: float) -> Tensor | None:
    """Return factor * gradient, where None is zero."""
    return gradient if gradient is None or factor == 1 else gradient * factor


def total(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return a + b, where None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _laid_out(leaf: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a leaf as the wrapped cell reads it, always in one layout: products round by how their operands lie."""
    return leaf.to(dtype).contiguous()
