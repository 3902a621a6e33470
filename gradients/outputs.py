"""What a readout gives at the updates of a recursion: at which it is asked, and how its answers are kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients import tree
from loopgrad.gradients.checks import is_int
from loopgrad.gradients.graphs import is_floating, requires_grad


@dataclass(frozen=True)
class Saving:
    """At which updates a readout is asked, and whether its answers are added up or kept one by one.

    Attributes:
        places: For each update the number of its answer among those that are kept, None where there is none.
        summed: Whether answers are added up.
    """

    places: tuple[int | None, ...]
    summed: bool

    @classmethod
    def of(cls, save: Any, num_steps: int, start: int) -> "Saving":
        """Return what `save` means for the updates start..start+num_steps-1.

        Raises:
            TypeError: It is none of the forms.
            ValueError: It names an update that there is not.
        """
        steps = range(start, start + num_steps)
        if isinstance(save, str) and save in ("sum", "all"):
            chosen: Sequence[int] = steps
        elif is_int(save, 1):
            chosen = [step for step in steps if (step + 1) % save == 0]
        elif isinstance(save, Sequence) and not isinstance(save, str) and all(map(is_int, save)):
            chosen = save
            if missing := [step for step in chosen if step not in steps]:
                raise ValueError(
                    f"save={save!r}: there is no update {missing[0]}: there are {num_steps}, from number {start} on"
                )
            if any(after <= before for before, after in zip(chosen[:-1], chosen[1:], strict=True)):
                raise ValueError(f"save={save!r} must name updates in increasing order, each once")
        else:
            raise TypeError(
                f'save={save!r} must be "last", "sum", "all", an int k of at least 1 for every k-th update, or a list '
                "of the numbers of updates"
            )
        numbers = {step: i for i, step in enumerate(chosen)}
        return cls(tuple(numbers.get(step) for step in steps), save == "sum")

    def cotangent(self, gradient: Tensor | None, place: int) -> Tensor | None:
        """Return the gradient of one answer, given that of what was kept of all."""
        return gradient if self.summed or gradient is None else gradient[place]

    @classmethod
    def every(cls, num_steps: int) -> "Saving":
        """Return the sum of the answers to all updates."""
        return cls((0,) * num_steps, True)

    @property
    def rows(self) -> int:
        """How many answers what is kept of them is as large as."""
        return 1 if self.summed else self.count

    @property
    def count(self) -> int:
        """How many answers there are."""
        return sum(place is not None for place in self.places)


class Answers:
    """Takes the answers of a readout in the order of the updates, and keeps their sum, or all of them.

    Args:
        saving: Of the recursion.
        graph: Whether answers are kept with the graphs that they come with; without, they are written into one tensor.
    """

    def __init__(self, saving: Saving, graph: bool = True):
        self.saving, self.graph = saving, graph
        self._kept: list[Any] = []
        self._unflatten: Any = None
        self._said: list[Any] = []

    @property
    def shown(self) -> bool:
        """Whether the readout is asked at the first updates in any case, for whoever watches what these read."""
        return not self.graph and torch.is_grad_enabled()

    def wants(self, step: int) -> bool:
        """Whether the readout is to be asked after an update."""
        return self.saving.places[step] is not None

    def put(self, step: int, answer: Any) -> None:
        """Take the answer of an update.

        Raises:
            TypeError: It holds something other than tensors and None.
            ValueError: It differs from the one before in structure or shape.
        """
        with torch._C.DisableTorchFunction():  # what is kept is no part of what the cell reads
            self._take(step, answer)

    def _take(self, step: int, answer: Any) -> None:
        leaves, unflatten = tree.flatten(answer)
        said = [None if leaf is None else (tuple(leaf.shape), leaf.dtype) for leaf in checked(answer)]
        if self._unflatten is None:
            self._unflatten, self._said = unflatten, said
            self._kept = [None if leaf is None else [] for leaf in leaves]
        if said != self._said:
            raise ValueError(
                f"readout must give the same structure, shapes and dtypes at every update: at update {step} of this "
                f"rollout {said}, before {self._said}"
            )
        place = self.saving.places[step]
        assert place is not None
        pairs = zip(self._kept, leaves, strict=True)
        self._kept = [None if leaf is None else self._with(old, leaf, place) for old, leaf in pairs]

    def _with(self, kept: Any, leaf: Tensor, place: int) -> Any:
        if self.saving.summed:
            leaf = countable(leaf if self.graph else leaf.detach())
            return leaf if isinstance(kept, list) else kept + leaf
        if self.graph:
            kept.append(leaf)
            return kept
        if isinstance(kept, list):
            kept = leaf.new_zeros((self.saving.count, *leaf.shape), requires_grad=False)
        with torch.no_grad():
            kept[place] = leaf
        return kept

    def leaves(self) -> list[Any]:
        """Return what is kept: a tensor, or None, for each leaf of an answer."""
        if not self.saving.summed and self.graph:
            self._kept = [self._stacked(kept) if isinstance(kept, list) else kept for kept in self._kept]
            self.graph = False
        return self._kept

    def _stacked(self, kept: list[Tensor]) -> Tensor:
        """Return one tensor, with zeros for updates that no sample has come to."""
        missing = [torch.zeros_like(kept[0], requires_grad=False)] * (self.saving.count - len(kept))
        return torch.stack([*kept, *missing])

    def replace(self, leaves: Sequence[Any]) -> None:
        """Keep these in place of `leaves()`: the same values, with a graph."""
        self._kept, self.graph = list(leaves), False

    def tree(self) -> Any:
        """Return what is kept in the structure of an answer; None if nobody was asked."""
        return None if self._unflatten is None else self._unflatten(self.leaves())


class Taken:
    """Takes the answers of updates that are run again, for their gradients to enter there.

    Args:
        saving: Of the recursion.
        since: The first update whose answer is wanted.
        shown: Whether the readout is asked at the first updates in any case, for whoever watches what these read.
        rows: Of each sample whether the gradients of its answers enter; None for all.
        again: Whether the readout is asked for the others as well: it may draw random numbers, or change a buffer, and
            later updates must find the generators and buffers that they found.
    """

    def __init__(
        self,
        saving: Saving,
        since: int = 0,
        shown: bool = False,
        rows: Sequence[bool] | None = None,
        again: bool = False,
    ):
        self.saving, self.since, self.shown, self.rows, self.again = saving, since, shown, rows, again
        self.found: list[tuple[int, list[Any]]] = []

    def wants(self, step: int) -> bool:
        """Whether the readout is to be asked after an update."""
        return (step >= self.since or self.again) and self.saving.places[step] is not None

    def put(self, step: int, answer: Any) -> None:
        """Take the answer of an update, if it is wanted."""
        if step < self.since:
            return
        place = self.saving.places[step]
        assert place is not None
        self.found.append((place, tree.flatten(answer)[0]))

    def pairs(self, gradients: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor]]:
        """Return (answer, gradient) for all that has both, given the gradients of what was kept."""
        found = [
            (leaf, self.saving.cotangent(gradient, place))
            for place, leaves in self.found
            for leaf, gradient in zip((leaf for leaf in leaves if is_floating(leaf)), gradients, strict=True)
            if requires_grad(leaf)
        ]
        return [(leaf, self._of_rows(gradient)) for leaf, gradient in found if gradient is not None]

    def _of_rows(self, gradient: Tensor) -> Tensor:
        if self.rows is None:
            return gradient
        rows = torch.tensor(self.rows, device=gradient.device).view(-1, *[1] * (gradient.dim() - 1))
        return torch.where(rows, gradient, 0)

    @property
    def tensors(self) -> list[Tensor]:
        """All leaves of all answers that are tensors."""
        return [leaf for _, leaves in self.found for leaf in leaves if isinstance(leaf, Tensor)]


def room_for(saving: Saving, answer: Any) -> Any:
    """Return zeros for the sum of answers like this one, or for all of them along a new first dimension."""
    checked(answer)
    lead = () if saving.summed else (saving.count,)

    def zeros(leaf: Tensor) -> Tensor:
        leaf = countable(leaf) if saving.summed else leaf
        return leaf.new_zeros((*lead, *leaf.shape), requires_grad=False)

    return tree.map_tensors(zeros, answer)


def checked(answer: Any) -> list[Any]:
    """Return the leaves of an answer; raise TypeError if one is neither a tensor nor None."""
    leaves = tree.flatten(answer)[0]
    if not all(leaf is None or isinstance(leaf, Tensor) for leaf in leaves):
        for name, leaf in tree.leaves_with_names(answer, "readout(...)"):
            if leaf is not None and not isinstance(leaf, Tensor):
                raise TypeError(f"{name} is a {type(leaf).__name__}: a readout gives tensors, or None")
    return leaves


def countable(leaf: Tensor) -> Tensor:
    """Return a tensor that can be added up: of flags, how many there are."""
    return leaf.long() if leaf.dtype == torch.bool else leaf
