"""The part that invertible cells share: each update reads one copy of the state and changes the other.

What was read is still there after the update, so the same evaluation of the cell that made the new state undoes it.
"""

import copy
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from loopgrad.gradients import Invertible, Note, Undone, tree
from loopgrad.gradients.cell_call import check_cell
from loopgrad.gradients.checks import check_choice
from loopgrad.gradients.contract import period_of, run
from loopgrad.gradients.graphs import leaf_view
from loopgrad.gradients.invertible import Gradients
from loopgrad.models.coupled_state import (
    Coupled,
    Parts,
    are_coupled,
    assembled,
    check_stored,
    dtype_of,
    dtypes_to_read,
    is_graded,
    laid_out,
    leaves_like,
    times,
    writes_to,
)
from loopgrad.models.grid_arithmetic import Ratio, no_digits, on_grid, plus
from loopgrad.models.split_grid import Split

Arithmetic = Literal["exact", "float64", "float32"]
Per = Literal["cycle", "update"]
STORED = {"exact": torch.float64, "float64": torch.float64, "float32": torch.float32}


class Coupling(Invertible):
    """Base of the invertible cells; subclasses give the arithmetic of one leaf.

    Called as cell(state, inputs, step), where state is `Coupled` or, at first, a plain state of the wrapped cell.
    Estimators take a plain state too and then return a plain one.

    Leaves that are not floating tensors (flags, token ids, counters, None) are never coupled, and floating ones can be
    named in `uncoupled`: a schedule, a counter, an accumulator. The cell reads such a leaf as it last returned it, and
    what it returns is the next value, in its own dtype; gradients go through it, where it has any. Names are those of
    error messages: "state[1]" for a tuple, "state['count']" for a dict, "state.count" for a dataclass, and a branch
    such as "state.memory" for all that it holds.

    To be undone exactly, a leaf that is not coupled is saved before each update that changes it: O(num_steps) memory,
    nothing for a counter, and as much as storing the states for a leaf as large as the state. There is no general way
    around that, as the cell may do anything to the leaf. A sum of what the cell makes has one, see the guide.
    """

    references: ClassVar[tuple[str, ...]] = ()
    rate_name: ClassVar[str]  # the argument that sets the strength of the coupling
    damped_copies = 0  # how many of the two copies are damped
    ratio: Ratio | None = None
    factor: float  # of the cell's image
    share: float  # that is kept of the other copy

    def __init__(
        self,
        cell: nn.Module,
        arithmetic: Arithmetic,
        per: Per,
        dtype: torch.dtype | None,
        uncoupled: str | Sequence[str] = (),
    ):
        super().__init__()
        name = type(self).__name__
        check_cell(cell, f"{name}(cell=...)")
        check_choice(name, "arithmetic", arithmetic, tuple(STORED))
        check_choice(name, "per", per, ("cycle", "update"))
        self.cell, self.arithmetic, self.per, self.dtype = cell, arithmetic, per, dtype
        self.uncoupled = (uncoupled,) if isinstance(uncoupled, str) else tuple(uncoupled)
        if not all(isinstance(item, str) for item in self.uncoupled):
            raise TypeError(f"{name}(uncoupled={uncoupled!r}) takes names of leaves, such as \"state['count']\"")
        self.exact = arithmetic == "exact"

    def extra_repr(self) -> str:
        """Return the rate, the arithmetic and what is not coupled."""
        rate = f"{self.rate_name}={getattr(self, self.rate_name)}"
        apart = f", uncoupled={self.uncoupled}" if self.uncoupled else ""
        return f"{rate}, arithmetic={self.arithmetic!r}, per={self.per!r}, dtype={self.dtype}{apart}"

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
        """Dtype in which the wrapped cell reads the coupled leaves of a state that does not say otherwise."""
        return self.dtype or dtype_of(self.cell) or torch.get_default_dtype()

    def couple(self, state: Any) -> Coupled:
        """Return the coupled state to start from: both copies at `state`, or at rest; a coupled state as it is."""
        if isinstance(state, Coupled):
            return state
        leaves, unflatten = tree.flatten(state)
        pairs = list(zip(leaves, are_coupled(state, type(self).__name__, self.uncoupled), strict=True))
        check_stored(pairs, type(self).__name__, self.arithmetic)
        current = [self._stored(leaf) if coupled else leaf for leaf, coupled in pairs]
        other = [self._companion(leaf) if coupled else None for leaf, coupled in pairs]
        copies = 0 if self.ratio is None else self.damped_copies
        lost = [[None if leaf is None else no_digits(leaf) for leaf in other] for _ in range(copies)]
        read_as = () if self.dtype is not None else dtypes_to_read(pairs, self.cell)
        return assembled(unflatten, current, other, lost, read_as, any(isinstance(leaf, Split) for leaf in other))

    def with_inner(self, change: Callable[[nn.Module], nn.Module]) -> "Coupling":
        """Return this coupling of change(cell)."""
        other = copy.copy(self)
        other._modules, other._compiled_call_impl = {**self._modules, "cell": change(self.cell)}, None
        return other

    def current(self, state: Coupled) -> Any:
        """Return z_t of a coupled state."""
        return state.current

    def read(self, state: Coupled) -> Any:
        """Return z_t of a coupled state, each leaf in the dtype in which the wrapped cell reads it."""
        parts = Parts(state)
        leaves = zip(parts.current, parts.other, self._dtypes(parts), strict=False)
        return parts.unflatten([leaf if pair is None else leaf.to(dtype) for leaf, pair, dtype in leaves])

    def forward(self, state: Any, inputs: Any, step: int, undo: Note | None = None) -> Any:
        """Apply update number `step`, or undo it; see `Invertible.forward`."""
        parts = Parts(self.couple(state))
        if undo is None:
            reads = self._reads(parts, parts.current)
            writes = writes_to(reads)
            made = self._made(parts, reads, inputs, step)
            parts.check(made, type(self).__name__, writes_to(reads) != writes)
            return self._advance(parts, reads, made, step)
        dropped = iter(undo.dropped)
        before = list(parts.current)
        for i, (pair, touched) in enumerate(zip(parts.other, undo.touched, strict=True)):
            if touched is not False and pair is not None:
                before[i] = self._read_by(before[i], pair)
            elif touched is not False:  # carried: a tensor is among those dropped, anything else in the note itself
                before[i] = next(dropped) if touched is True else touched[0]
        reads = self._reads(parts, [leaf.detach() if isinstance(leaf, Tensor | Split) else leaf for leaf in before])
        taped = torch.is_grad_enabled()
        graded = [read.requires_grad_(taped) if is_graded(read) else None for read in reads]
        # modules that count gradients through hooks want views; where nothing is cast, sums meet at the leaf itself
        reads = [
            r if g is None or r.dtype == b.dtype else leaf_view(r)
            for r, g, b in zip(reads, graded, before, strict=True)
        ]
        made = self._made(parts, reads, inputs, step)
        images = parts.images(reads, made)
        with torch.no_grad():
            return Undone(self._retreat(parts, before, reads, made, list(dropped)), graded, images)

    def pull(self, images: list[Tensor | None], gradients: Gradients) -> tuple[Gradients, Gradients]:
        """Return the vector-Jacobian product of an update without the part through the cell; see `Invertible.pull`."""
        width = len(images) // 2
        seeds, before = [], list(gradients)
        for i, image in enumerate(images[:width]):
            seed = None
            if image is not None:
                sum_, before[i], before[width + i] = self._pulled(gradients[i], gradients[width + i])
                seed = None if sum_ is None else self._gradient_of_image(sum_, image.dtype)
            seeds.append(seed)
        for i, image in enumerate(images[width:]):  # carried: the image is the next state itself
            seeds.append(None if image is None else gradients[i])
            if image is not None:
                before[i] = None
        return seeds, before

    def note(self, state: Any, after: Coupled, step: int) -> Note:
        """Return what `forward` needs to undo update number `step`, which led from `state` to `after`."""
        parts, touched, dropped = Parts(self.couple(state)), [], []
        for was, now, pair in zip(parts.leaves, tree.flatten(after.current)[0], parts.other, strict=True):
            if pair is not None or was is now:
                touched.append(was is not now)
            elif isinstance(was, Tensor):
                touched.append(True)
                dropped.append(was)
            else:
                touched.append((was,))
        if self.ratio is not None and step > 0 and self._word_is_full(step):
            dropped += [self.ratio.pack(digits) for copy in parts.lost for digits in copy if digits is not None]
        return Note(tuple(touched), tuple(dropped))

    def verified(self, state: Coupled) -> list[Tensor]:
        """Return both copies of what is coupled; the digits lost before the first update are no part of the start."""
        parts = Parts(state)
        pairs = zip(parts.current, parts.other, strict=True)
        leaves = [leaf for pair in pairs if pair[1] is not None for leaf in pair]
        return [part for leaf in leaves for part in (leaf.limbs() if isinstance(leaf, Split) else [leaf])]

    def _dtypes(self, parts: Parts) -> Any:
        return parts.read_as or repeat(self.cell_dtype)

    def _reads(self, parts: Parts, current: list[Any]) -> list[Any]:
        """What the wrapped cell reads of the leaves `current`."""
        leaves = zip(current, parts.other, self._dtypes(parts), strict=False)
        return [leaf if pair is None else laid_out(leaf, dtype) for leaf, pair, dtype in leaves]

    def _made(self, parts: Parts, reads: list[Any], inputs: Any, step: int) -> list[Any]:
        """What the wrapped cell makes of the leaves that it reads; the very leaf where it hands one through."""
        period = period_of(self.cell) if self.per == "cycle" else 1
        z = run(self.cell, parts.unflatten(reads), inputs, range(step * period, (step + 1) * period))
        return leaves_like(z, parts.like)

    def _advance(self, parts: Parts, reads: list[Any], made: list[Any], step: int) -> Coupled:
        if self._word_is_full(step):
            parts.lost = [[None if d is None else torch.zeros_like(d) for d in copy] for copy in parts.lost]
        for i, (read, image) in enumerate(zip(reads, made, strict=True)):
            if parts.other[i] is None:
                parts.current[i] = image
            elif image is not read:
                own = [copy[i] for copy in parts.lost]
                parts.current[i], parts.other[i], own = self._next(parts.current[i], parts.other[i], own, image)
                parts.set_lost(i, own)
        return parts.coupled()

    def _retreat(
        self, parts: Parts, before: list[Any], reads: list[Any], made: list[Any], words: list[Tensor]
    ) -> Coupled:
        for i, (read, image) in enumerate(zip(reads, made, strict=True)):
            if parts.other[i] is not None and image is not read:
                own = [copy[i] for copy in parts.lost]
                parts.other[i], own = self._before(parts.current[i], parts.other[i], own, image)
                parts.set_lost(i, own)
        parts.current = before
        if words and self.ratio is not None:
            packed, unpack = iter(words), self.ratio.unpack
            parts.lost = [[None if d is None else unpack(next(packed), d.dtype) for d in copy] for copy in parts.lost]
        return parts.coupled()

    def _word_is_full(self, step: int) -> bool:
        return self.ratio is not None and step % (self.ratio.window * self.damped_copies) == 0

    def _stored(self, leaf: Tensor) -> Any:
        return on_grid(leaf) if self.exact else leaf.to(STORED[self.arithmetic]).clone()

    def _plus(self, base: Any, image: Tensor) -> Any:
        """Return base + factor * image."""
        if self.exact:
            return plus(base, image, self.factor)
        return base.add(image.to(base.dtype), alpha=self.factor)

    def _minus(self, sum_: Any, image: Tensor) -> Any:
        """The base of a sum that `_plus` has given."""
        if self.exact:
            return plus(sum_, image, -self.factor)
        return sum_.sub(image.to(sum_.dtype), alpha=self.factor)

    def _gradient_of_image(self, gradient: Tensor, dtype: torch.dtype) -> Tensor:
        """The derivative of `_plus` with respect to an image of this dtype, applied to a gradient."""
        return gradient.to(dtype) * self.factor if self.exact else (gradient * self.factor).to(dtype)

    def _companion(self, leaf: Tensor) -> Any:
        """The copy that no update has read yet."""
        return self._stored(leaf)

    def _read_by(self, current: Any, other: Any) -> Any:
        """What the update that led to this pair has read."""
        return other

    def _next(self, current: Any, other: Any, lost: list[Any], image: Tensor) -> tuple:
        """One leaf of both copies and its lost digits after an update: here the copies change places."""
        kept, digits = self._damp(other, lost[1:])
        return self._plus(kept, image), current, digits + lost[:1]

    def _before(self, current: Any, other: Any, lost: list[Any], image: Tensor) -> tuple:
        """The copy that an update has changed, and its lost digits, as they were before it."""
        before, digits = self._undamp(self._minus(current, image), lost[:1])
        return before, lost[1:] + digits

    def _pulled(self, current: Tensor | None, other: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the sum that holds the image and of the pair before an update, from those of the pair after."""
        return current, other, times(current, self.share)

    def _damp(self, value: Any, lost: list[Tensor]) -> tuple[Any, list[Tensor]]:
        """Return share * value, and the lost digits of that one copy, if there are any."""
        if self.ratio is None or not lost:
            return value if self.share == 1 else value * self.share, lost
        value, digits = self.ratio.times(value, *lost)
        return value, [digits]

    def _undamp(self, value: Any, lost: list[Tensor]) -> tuple[Any, list[Tensor]]:
        if self.ratio is None or not lost:
            return value if self.share == 1 else value / self.share, lost
        value, digits = self.ratio.undo(value, *lost)
        return value, [digits]
