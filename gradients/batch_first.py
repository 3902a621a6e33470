"""A cell on states whose batch is dimension 0, made of one that has it elsewhere, as torch's RNNs do.

Whoever takes samples apart looks at dimension 0. The batch is moved there in views, and the cell inside sees every
tensor laid out as it is used to.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from loopgrad.gradients import tree
from loopgrad.gradients.batch_dims import WHOLE, batch_sizes, input_dims, is_first, state_dims
from loopgrad.gradients.wrappers import unwrapped


def batch_first(
    cell: nn.Module, state: Any, inputs: Any, batch_dim: Any, plain: Any = None
) -> tuple[nn.Module, Any, Any]:
    """Return cell, state and inputs with the batch in dimension 0 everywhere; the given ones for the default.

    Args:
        cell: The cell, for states as they are given.
        state: Its state.
        inputs: What it reads.
        batch_dim: Where the batch is.
        plain: The plain state that a coupled one was made of, which `batch_dim` then speaks of.

    Raises:
        TypeError: `batch_dim` holds something that is neither an int nor None.
        ValueError: It does not fit the state or the inputs.
    """
    if is_first(batch_dim):
        return cell, state, inputs
    plain = state if plain is None else plain
    dims = state_dims(plain, batch_dim)
    batch = next(iter(batch_sizes(plain, dims).values()), None)
    if plain is not state:
        dims = dims_of_copies(type(cell).__name__, plain, state, dims, batch_dim)
    leaves, unflatten = tree.flatten(state)
    entries, unflatten_inputs = tree.flatten(inputs)
    placed = BatchFirst(cell, _Layout(leaves, dims), _Layout(entries, input_dims(inputs, batch_dim, batch)))
    return placed, unflatten(placed.of_state.first(leaves)), unflatten_inputs(placed.of_inputs.first(entries))


def state_first(state: Any, batch_dim: Any) -> Any:
    """Return a state with the batch in dimension 0 of its leaves, in views; the state itself for the default."""
    if is_first(batch_dim):
        return state
    leaves, unflatten = tree.flatten(state)
    return unflatten(_Layout(leaves, state_dims(state, batch_dim)).first(leaves))


def given_back(cell: nn.Module, state: Any) -> Any:
    """Return a state of what `batch_first` has made of a cell as the cell inside knows it."""
    if not isinstance(cell, BatchFirst):
        return state
    leaves, unflatten = tree.flatten(state)
    return unflatten(cell.of_state.as_given(leaves))


def inside(cell: nn.Module) -> nn.Module:
    """Return the cell that `batch_first` was given."""
    return cell.cell if isinstance(cell, BatchFirst) else cell


class BatchFirst(nn.Module):
    """Calls a cell on a state, and on inputs, that have the batch in dimension 0."""

    is_around = True

    def __init__(self, cell: nn.Module, of_state: "_Layout", of_inputs: "_Layout"):
        super().__init__()
        self.cell, self.of_state, self.of_inputs = cell, of_state, of_inputs

    @property
    def period(self) -> Any:
        """That of the cell inside."""
        return getattr(unwrapped(self.cell), "period", 1)

    def forward(self, state: Any, inputs: Any, step: int) -> Any:
        """Apply the update to the state as the cell inside knows it."""
        leaves, unflatten = tree.flatten(state)
        shown = self.of_state.as_given(leaves)
        if any(self.of_inputs.dims):
            entries, rebuild = tree.flatten(inputs)
            inputs = rebuild(self.of_inputs.as_given(entries))
        after, build = tree.flatten(self.cell(unflatten(shown), inputs, step))
        if len(after) != len(shown):
            return build(after)  # another structure, which is for the caller to refuse
        self.of_state.learn(after)
        # a leaf that is handed through stays the same object
        pairs = zip(after, shown, self.of_state.first(after), leaves, strict=True)
        return build([old if new is view else moved for new, view, moved, old in pairs])


class _Layout:
    """Where the batch is in each of some leaves, and the strides that their owner has shown."""

    def __init__(self, leaves: Sequence[Any], dims: Sequence[Any]):
        self.dims = list(dims)
        self._strides: list[set[tuple[int, ...]]] = [set() for _ in dims]
        self.learn(leaves)

    def learn(self, leaves: Sequence[Any]) -> None:
        for known, leaf, dim in zip(self._strides, leaves, self.dims, strict=True):
            if dim and isinstance(leaf, Tensor):
                known.add(leaf.stride())

    def first(self, leaves: Sequence[Any]) -> list[Any]:
        return [_forth(leaf, dim) for leaf, dim in zip(leaves, self.dims, strict=True)]

    def as_given(self, leaves: Sequence[Any]) -> list[Any]:
        """Return leaves as their owner laid them out.

        One that comes from the owner is seen again as the view of it that it was. One that was made anew, such as a
        solver's, lies as the matrix did that it was cut from, and cells may `view` what they read: it is copied.
        """
        found = []
        for known, leaf, dim in zip(self._strides, leaves, self.dims, strict=True):
            back = _back(leaf, dim)
            found.append(back if back is leaf or back.stride() in known else back.contiguous())
        return found


def _forth(leaf: Any, dim: Any) -> Any:
    if dim is WHOLE:
        return leaf.unsqueeze(0)
    if dim and leaf.dim() <= dim:
        raise ValueError(f"the cell returned a leaf of shape {tuple(leaf.shape)}, whose batch was dimension {dim}")
    return leaf.movedim(dim, 0) if dim else leaf


def _back(leaf: Any, dim: Any) -> Any:
    if dim is WHOLE:
        return leaf.squeeze(0)
    return leaf.movedim(0, dim) if dim else leaf


def dims_of_copies(cell: str, plain: Any, coupled: Any, dims: list[int | None], batch_dim: Any) -> list[int | None]:
    """Return the dimensions for a coupled state, which is made of copies of the plain one."""
    own, found = ([getattr(leaf, "shape", None) for leaf in tree.flatten(it)[0]] for it in (plain, coupled))
    copies = len(found) // max(1, len(own))
    if found != own * copies:
        raise ValueError(
            f"batch_dim={batch_dim!r} is that of the plain state, and the state that {cell}.couple makes of it is not "
            "made of copies: pass cell.couple(state) and say where the batch is in that"
        )
    return dims * copies
