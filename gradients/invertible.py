"""What a cell must offer for `ReversibleBPTT` to undo its updates instead of storing them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

from torch import Tensor, nn

from loopgrad.gradients import tree
from loopgrad.gradients.wrappers import unwrapped

Gradients = list[Tensor | None]


@dataclass(frozen=True)
class Note:
    """What undoing one update needs beside the state it led to.

    Attributes:
        touched: Plain values, such as which leaves the update changed.
        dropped: Tensors, such as digits that the update had no room for; they count as saved for backward.
    """

    touched: tuple[Any, ...] = ()
    dropped: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Undone:
    """An update that was undone, and what takes its vector-Jacobian product.

    Attributes:
        before: The state before the update.
        reads: What the update has read of it: leaves of a graph, detached from everything before, that stand for the
            first leaves of the state, in order (for all of them or for the first few); None for one that is not
            differentiated.
        images: What the update made of them, with a graph from `reads`, in any number; None where there is nothing.
    """

    before: Any
    reads: list[Any]
    images: list[Tensor | None]


class Invertible(nn.Module, ABC):
    """A cell whose updates can be undone, one evaluation serving to undo an update and to differentiate it.

    Subclasses implement `forward`, in both directions, and `pull`. The rest has defaults that suit a cell whose state
    is like any other cell's: `couple` and `read` serve cells that carry more, `note` those that lose information.

    Attributes:
        exact: Whether an update is undone to the last bit. Floating-point sums are undone up to rounding only: a cell
            that relies on them says False, or the first state is held to be wrong.
        safe_length: Updates that can be undone one after the other before rounding has eaten the state; None for any
            number.
    """

    exact: bool = True
    safe_length: int | None = None

    @abstractmethod
    def forward(self, state: Any, inputs: Any, step: int, undo: Note | None = None) -> Any:
        """Apply update number `step`, or undo it.

        To undo it, recover what the update has read from the state after it, run the same operations on that under
        the autograd mode that is set, and subtract the result without a graph.

        Args:
            state: The state before the update; after it, if `undo` is given. Neither is to be written to.
            inputs: What the update reads beside the state.
            step: Number of the update.
            undo: What `note` said of the update.

        Returns:
            The state after the update. With `undo`: `Undone`.
        """

    @abstractmethod
    def pull(self, images: list[Tensor | None], gradients: Gradients) -> tuple[Gradients, Gradients]:
        """Return the vector-Jacobian product of an update, except for the part from `images` to `reads`.

        Args:
            images: Images of the update that was undone.
            gradients: Gradients of the leaves of the state after it, in the order of the tree; None for zero.

        Returns:
            The gradients of the images, and those of the leaves of the state before as far as they do not come
            through the images; autograd takes the former from the images to `reads` and adds what arrives.
        """

    def couple(self, state: Any) -> Any:
        """Return the state to start from; such a state itself is returned as it is."""
        return state

    def current(self, state: Any) -> Any:
        """Return the part of a state that the next update reads, its own tensors: what an analysis records as z_t."""
        return state

    def read(self, state: Any) -> Any:
        """Return the plain state, such as was given to `couple`, of a state that updates have led to."""
        return state

    def with_inner(self, change: Callable[[nn.Module], nn.Module]) -> "Invertible":
        """Return this cell around change(what it wraps), and itself if it wraps nothing; neither is written to."""
        return self

    def note(self, state: Any, after: Any, step: int) -> Note:
        """Return what `forward` needs to undo update number `step`, which led from `state` to `after`."""
        return Note()

    def verified(self, state: Any) -> list[Tensor]:
        """Return the tensors of the first state that undoing every update must meet again."""
        return tree.tensors(state)


def undoing(cell: nn.Module) -> Invertible | None:
    """Return the cell that can undo its updates, within what wrappers have put around it; None if it cannot."""
    inner = unwrapped(cell)
    return inner if isinstance(inner, Invertible) else None


def invertible(cell: nn.Module) -> Invertible:
    """Return the same of a cell that is known to be able to undo its updates."""
    inner = undoing(cell)
    assert inner is not None
    return inner


def is_invertible(cell: nn.Module) -> TypeGuard[Invertible]:
    """Return whether the updates of a cell can be undone; a compiled cell hands on the members of the one inside."""
    return undoing(cell) is not None
