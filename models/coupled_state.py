"""The state of a coupled recursion: which of its leaves are coupled, and how the cell reads them.

A leaf is coupled if it is a floating tensor that nobody has named as uncoupled. Everything else (flags, counters, None,
named leaves) is carried: the cell reads it as it is, and its next value is the one that the cell returns.
"""

import difflib
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.gradients import Stationary, tree, wide
from loopgrad.gradients.contract import check_structure
from loopgrad.models.split_grid import Split

PLAIN = (int, float, complex, str, type(None))  # what a carried leaf may be beside a tensor; bool is an int
LEAVES = (Tensor, *PLAIN)


@dataclass
class Coupled:
    """State of a coupled cell: two trees like the cell's own state, and the digits that damping them has lost.

    Exact arithmetic keeps integers times 2^-32. On a device with float64 that is the dtype of coupled leaves, and of
    their gradients. On one without (Apple's GPUs) a leaf is float32, the value rounded, with the gradient in float32
    too, and an int32 beside it in `tails` has the rest: as many bytes. The integers are the same to the last bit below
    2^20, where both end; zero has no sign there. Values of 2^23 and more, inf and nan are float32 without a rest.

    Attributes:
        current: z_t, what the next update reads.
        other: z_{t-1} (`Damped`, `Leapfrog`) or the velocity v_t (`Momentum`); None in place of a leaf that is carried.
        lost: Trees of integers held in the dtype of the copies, or in int64 beside tails, one per damped copy; empty
            without damping or without exactness.
        tails: What leaves of `current` and of `other` lack where a device has no float64: two trees, None for a leaf
            that lacks nothing; empty if none does. See `split_grid`.
        read_as: Dtype in which the cell reads each leaf, None for a carried one; empty if they all have the cell's.
    """

    current: Any
    other: Any
    lost: tuple[Any, ...] = ()
    tails: tuple[Any, ...] = ()
    dtypes: InitVar[tuple[torch.dtype | None, ...]] = ()

    def __post_init__(self, dtypes: tuple[torch.dtype | None, ...]) -> None:
        """Keep the dtypes beside the fields: they are no leaves of the state, and `tree` hands them on."""
        self.read_as = dtypes


class Parts:
    """The leaves of a coupled state side by side, to be changed one by one and put together again.

    Attributes:
        like: The tree `current` of the state.
        leaves: Leaves of the tree.
        current: Leaves of z_t, `Split` where they have tails.
        other: Leaves of the other copy, None for one that is carried.
        lost: Lost digits of the leaves, one list per damped copy.
        read_as: That of the state.
    """

    def __init__(self, state: Coupled):
        self.like, self.read_as = state.current, state.read_as
        self.leaves, self.unflatten = tree.flatten(state.current)
        self.current, self.other = list(self.leaves), tree.flatten(state.other)[0]
        self.lost = [tree.flatten(copy)[0] for copy in state.lost]
        self.split = bool(state.tails)
        if self.split:
            tails = [tree.flatten(copy)[0] for copy in state.tails]
            self.current, self.other = map(_with_tails, (self.current, self.other), tails)

    def coupled(self) -> Coupled:
        """Return the state with these leaves."""
        return assembled(self.unflatten, self.current, self.other, self.lost, self.read_as, self.split)

    def set_lost(self, i: int, digits: Sequence[Tensor]) -> None:
        """Replace the lost digits of leaf i."""
        for copy, new in zip(self.lost, digits, strict=True):
            copy[i] = new

    def images(self, reads: Sequence[Any], made: Sequence[Any]) -> list[Tensor | None]:
        """Return the images of the coupled leaves, and after them those of carried ones.

        Each has as many places as there are leaves; None where there is none, a leaf is handed through, or is not
        differentiated.
        """
        changed = [None if image is read else image for image, read in zip(made, reads, strict=True)]
        if all(pair is not None for pair in self.other):
            return changed + [None] * len(changed)
        pairs = list(zip(changed, self.other, strict=True))
        images = [None if pair is None else image for image, pair in pairs]
        return images + [image if pair is None and is_graded(image) else None for image, pair in pairs]

    def check(self, made: Sequence[Any], owner: str, written: bool) -> None:
        """Raise if what a cell makes of the leaves cannot be coupled or carried, or if it has written to them."""
        if written:
            raise RuntimeError(
                f"the cell changes its state in place, which {owner} cannot tell from handing it through: write "
                "z + f(z) instead of z.add_(f(z)), and count + 1 instead of count += 1"
            )
        for i, (image, pair) in enumerate(zip(made, self.other, strict=True)):
            if pair is None:
                fits = isinstance(image, LEAVES)
            else:
                fits = isinstance(image, Tensor) and image.shape == pair.shape and image.is_floating_point()
            if not fits:
                raise ValueError(self._misfit(i, image, owner))

    def _misfit(self, i: int, image: Any, owner: str) -> str:
        name, pair = tree.leaves_with_names(self.like, "state")[i][0], self.other[i]
        got = f"a {type(image).__name__}"
        if pair is None:
            return (
                f"the cell returned {got} for {name}, of which {owner} cannot tell the tensors: return a tensor, a "
                "number, a string or None"
            )
        if isinstance(image, Tensor):
            got = f"a tensor of shape {tuple(image.shape)} and {image.dtype}"
        return (
            f"the cell returned {got} for {name}, and {owner} can add only a floating tensor of the leaf's own shape "
            f"{tuple(pair.shape)} to it: give the first state that shape, or, for a leaf that grows or is not to be "
            f'added to, beside others that are, uncoupled=("{name}",)'
        )


def assembled(
    unflatten: tree.Unflatten,
    current: tree.Leaves,
    other: tree.Leaves,
    lost: Sequence[tree.Leaves],
    read_as: tuple[torch.dtype | None, ...],
    split: bool,
) -> Coupled:
    """Return the coupled state of leaves, some of which are `Split` if `split`."""
    tails = ()
    if split:
        (current, first), (other, second) = _without_tails(current), _without_tails(other)
        tails = unflatten(first), unflatten(second)
    return Coupled(unflatten(current), unflatten(other), tuple(map(unflatten, lost)), tails, read_as)


def _with_tails(leaves: tree.Leaves, tails: tree.Leaves) -> tree.Leaves:
    return [leaf if tail is None else Split(leaf, tail) for leaf, tail in zip(leaves, tails, strict=True)]


def _without_tails(leaves: tree.Leaves) -> tuple[tree.Leaves, tree.Leaves]:
    heads = [leaf.head if isinstance(leaf, Split) else leaf for leaf in leaves]
    return heads, [leaf.tail if isinstance(leaf, Split) else None for leaf in leaves]


def are_coupled(state: Any, owner: str, uncoupled: Sequence[str]) -> list[bool]:
    """Return for each leaf of a plain state whether it is coupled.

    Raises:
        TypeError: A leaf that is not named is complex, or is no tensor, number, string or None.
        ValueError: A name is that of no leaf and no branch, or no leaf is left to couple.
    """
    named = tree.leaves_with_names(state, "state")
    apart: set[str] = set()
    for given in uncoupled:
        found = {name for name, _ in named if name == given or name.startswith((f"{given}[", f"{given}."))}
        if not found:
            near = difflib.get_close_matches(given, [name for name, _ in named], n=3, cutoff=0.0)
            raise ValueError(
                f"{owner}(uncoupled=...) names {given}, which is no leaf or branch of the state: the nearest are "
                f"{', '.join(near)}"
            )
        apart |= found
    coupled = []
    for name, leaf in named:
        if isinstance(leaf, Tensor):
            if leaf.is_complex() and name not in apart:
                raise TypeError(
                    f"{name} is {leaf.dtype}, and {owner} adds real numbers: give the state torch.view_as_real of it, "
                    f'or carry it as the cell returns it, uncoupled=("{name}",)'
                )
        elif not isinstance(leaf, PLAIN):
            raise TypeError(
                f"{name} is a {type(leaf).__name__}, of which {owner} cannot tell the tensors: give the state as a "
                "tensor, or a tuple, list, dict or dataclass of tensors, numbers and None"
            )
        coupled.append(isinstance(leaf, Tensor) and leaf.is_floating_point() and name not in apart)
    if apart and not any(coupled):
        raise ValueError(f"{owner}(uncoupled={tuple(uncoupled)!r}) leaves nothing to couple: use the cell as it is")
    return coupled


def check_stored(leaves: Sequence[tuple[Any, bool]], owner: str, arithmetic: str) -> None:
    """Raise TypeError if the device of a coupled leaf cannot hold what an arithmetic keeps."""
    for leaf, coupled in leaves:
        if coupled and arithmetic == "float64" and not wide.has_float64(leaf.device):
            raise TypeError(
                f"{owner}(arithmetic='float64') keeps its state in float64, which {leaf.device.type} devices do not "
                "have: use arithmetic='exact', which keeps integers there"
            )


def dtypes_to_read(leaves: Sequence[tuple[Any, bool]], cell: nn.Module) -> tuple[torch.dtype | None, ...]:
    """Return the dtype in which the cell reads each leaf, as it was given; empty if the dtype is the cell's own.

    Args:
        leaves: Leaves of a plain state, and whether they are coupled.
        cell: The cell that reads them.
    """
    dtypes = tuple(leaf.dtype if coupled else None for leaf, coupled in leaves)
    own, given = dtype_of(cell), set(dtypes) - {None}
    # nothing but float64 was not chosen for the cell's sake: torch multiplies it by no parameter of another dtype
    if given == {torch.float64} and own is not None:
        return ()
    return () if given <= {own or torch.get_default_dtype()} else dtypes


def dtype_of(cell: nn.Module) -> torch.dtype | None:
    """Return the dtype of the first floating parameter of a cell, or tensor that it closes over; None without one."""
    for module in cell.modules():
        own = module.closed_over if isinstance(module, Stationary) else module._parameters.values()
        for tensor in own:
            if tensor is not None and tensor.is_floating_point():
                return tensor.dtype
    return None


def laid_out(leaf: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a leaf as the wrapped cell reads it, always in one layout: products round by how their operands lie."""
    return leaf.to(dtype).contiguous()


def leaves_like(given: Any, like: Any) -> tree.Leaves:
    """Return the leaves of the state that a cell has returned, in the order of the state that it was given.

    Raises:
        ValueError: It has another structure.
    """
    leaves: tree.Leaves = []
    if not _collect(given, like, leaves):
        check_structure(like, given)
        return tree.flatten(given)[0]
    return leaves


def _collect(given: Any, like: Any, leaves: tree.Leaves) -> bool:
    """Add the leaves of `given`; False where it takes names to tell whether the structures agree."""
    if isinstance(like, LEAVES):
        if not isinstance(given, LEAVES):
            return False
        leaves.append(given)
        return True
    if isinstance(like, dict) and isinstance(given, dict) and like.keys() == given.keys():
        return all(_collect(given[key], part, leaves) for key, part in like.items())
    sequences = {type(like), type(given)} <= {tuple, list}
    if (sequences or (type(like) is type(given) and isinstance(like, tuple))) and len(like) == len(given):
        return all(_collect(mine, part, leaves) for mine, part in zip(given, like, strict=True))
    if type(like) is type(given) and is_dataclass(like):
        names = [field.name for field in fields(like)]
        return all(_collect(getattr(given, name), getattr(like, name), leaves) for name in names)
    return False


def is_graded(leaf: Any) -> bool:
    """Return whether a leaf is a tensor that can have a gradient."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def writes_to(leaves: Sequence[Any]) -> list[int]:
    """Return how often each tensor among the leaves was written to, as far as torch counts that."""
    if torch.compiler.is_compiling():  # a compiler sees no counts
        return []
    return [leaf._version for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_inference()]


def times(gradient: Tensor | None, factor: float) -> Tensor | None:
    """Return factor * gradient, where None is zero."""
    return gradient if gradient is None or factor == 1 else gradient * factor


def total(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return a + b, where None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b
