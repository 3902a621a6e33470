"""What a call of an estimator may ask for beside the last state: checked, and put around the cell."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.gradients import tree
from loopgrad.gradients.batch_dims import BatchDims, is_first, state_dims
from loopgrad.gradients.batch_first import dims_of_copies
from loopgrad.gradients.checks import is_int
from loopgrad.gradients.invertible import is_invertible
from loopgrad.gradients.outputs import Answers, Saving
from loopgrad.gradients.stepwise import Steps, Stepwise, StepwiseInvertible, kept, rows_of_samples


class Ending(ABC):
    """What ends samples before num_steps: an `Until`."""

    @abstractmethod
    def rollout(
        self, estimator: Any, cell: nn.Module, plain: Any, first: Any, inputs: Any, num_steps: int, how: "Options"
    ) -> Any:
        """Return the rollout of an estimator whose samples end so, with `stats.steps`."""


@dataclass(frozen=True)
class Options:
    """The optional arguments of `Estimator.__call__`, which explains them."""

    xs: Any
    readout: Callable[[Any, Any, Any, int], Any] | None
    save: Any
    start: int
    lengths: Any
    until: Any
    batch_dim: Any
    num_steps: int

    @property
    def none(self) -> bool:
        """Whether nothing is asked for that the cell must know of."""
        asked = self.xs is not None or self.readout is not None or self.lengths is not None or self.start != 0
        return not asked and self.of_last and self.until is None

    @property
    def of_last(self) -> bool:
        """Whether the answer to the last state is wanted, and no other."""
        return isinstance(self.save, str) and self.save == "last"

    def checked(self, state: Any) -> int:
        """Check them; return the number of updates that are needed, those of the longest sample.

        Raises:
            TypeError: One is of the wrong type.
            ValueError: One does not fit the number of updates or the batch.
        """
        num_steps = self.num_steps
        if not is_int(self.start, 0):
            raise TypeError(f"start={self.start!r} must be an int of at least 0, the number of the first update")
        if self.readout is not None and not callable(self.readout):
            kind = type(self.readout).__name__
            raise TypeError(f"readout must be callable as readout(state, inputs, x_t, step), got {kind}")
        if self.until is not None and not isinstance(self.until, Ending):
            raise TypeError(
                f"until={self.until!r} must be Until(event), which may say how often it is looked at, or None"
            )
        named = [] if self.xs is None else tree.leaves_with_names(self.xs, "xs")
        if self.xs is not None and not any(isinstance(leaf, Tensor) for _, leaf in named):
            raise TypeError("xs holds no tensor: give a tree of tensors (updates, batch, ...), or None")
        for name, leaf in named:
            if isinstance(leaf, Tensor) and leaf.shape[:1] != (num_steps,):
                raise ValueError(
                    f"{name} has shape {tuple(leaf.shape)} and num_steps is {num_steps}: its first dimension must be "
                    "the updates, (num_steps, batch, ...); of (batch, num_steps, ...) give x.movedim(1, 0)"
                )
        if self.lengths is None:
            return num_steps
        lengths, sizes = torch.as_tensor(self.lengths), self._batch(state)
        if lengths.dtype.is_floating_point or lengths.dtype == torch.bool or lengths.dim() != 1:
            raise TypeError(f"lengths must be ints, one per sample, got {self.lengths!r}")
        if sizes and len(lengths) != sizes[0]:
            raise ValueError(f"lengths has {len(lengths)} entries, and the batch of the state {sizes[0]} samples")
        least, most = torch.aminmax(lengths) if len(lengths) else (lengths.new_zeros(()),) * 2
        if least < 0 or most > num_steps:
            raise ValueError(f"lengths={self.lengths!r} must lie between 0 and num_steps={num_steps}")
        return int(most)

    def saving(self) -> Saving | None:
        """Return at which updates the readout is asked on the way; None for the last state alone."""
        return None if self.of_last else Saving.of(self.save, self.num_steps, self.start)

    def around(self, cell: nn.Module, plain: Any, state: Any) -> Stepwise:
        """Return a cell that does what is asked for, on the state that the recursion starts from."""
        dims, lengths = [], None
        if self.lengths is not None:
            dims = state_dims(plain, self.batch_dim)
            if state is not plain:
                dims = dims_of_copies(type(cell).__name__, plain, state, dims, self.batch_dim)
            device = next(leaf.device for leaf in tree.tensors(state))
            lengths = torch.as_tensor(self.lengths).to(device)
        kind = StepwiseInvertible if is_invertible(cell) else Stepwise
        return kind(cell, self.readout, self.start, lengths, dims)

    def limits(self, state: Any, num_steps: int) -> Tensor:
        """Return (batch,) the most updates of each sample, on the device of a state: its length, or num_steps."""
        batch, device = self._batch(state), next(leaf.device for leaf in tree.tensors(state))
        if self.lengths is None:
            return torch.full((batch[0],), num_steps, device=device)
        return torch.as_tensor(self.lengths).to(device, torch.long)

    def steps(self, inputs: Any, answers: Answers | None, by_sample: bool) -> Steps:
        """Return what such a cell takes for inputs; `by_sample`, xs with the batch in dimension 0 too."""
        if not by_sample:
            return Steps(inputs, self.xs, answers=answers)
        xs = tree.map_tensors(lambda leaf: leaf.movedim(0, 1) if leaf.dim() > 1 else leaf, self.xs)
        return Steps(inputs, xs, axis=1, answers=answers)

    def last(self, state: Any, inputs: Any, num_steps: int, taken: tuple[int, ...] | None = None) -> Any:
        """Return the readout's answer to the last state; `taken` are the numbers of updates that data have decided."""
        lengths = self.lengths if taken is None else taken
        if self.readout is None or not self.num_steps or (lengths is None and not num_steps):
            return None
        if lengths is None:
            x = tree.map_tensors(lambda leaf: leaf[num_steps - 1], self.xs)
            return self.readout(state, inputs, x, self.start + num_steps - 1)
        numbers = torch.as_tensor(lengths).tolist() if taken is None else taken
        counts = torch.tensor(numbers, dtype=torch.long, device=next(leaf.device for leaf in tree.tensors(state)))
        ends = counts.clamp(min=1) - 1
        x = tree.map_tensors(lambda leaf: _of_rows(leaf, ends.to(leaf.device)), self.xs)  # of each sample its own
        answer: Any = None
        for count in sorted(set(numbers)) or [0]:
            found = self.readout(state, inputs, x, self.start + max(count - 1, 0))
            answer = _where((counts == count) & (counts > 0), found, answer, len(counts))
        return answer

    def dims(self, steps: Steps, state: Any) -> Any:
        """Return `batch_dim` for `steps` in place of the caller's inputs."""
        if is_first(self.batch_dim):
            return self.batch_dim
        of_state = self.batch_dim.state if isinstance(self.batch_dim, BatchDims) else self.batch_dim
        given = self.batch_dim.inputs if isinstance(self.batch_dim, BatchDims) else None
        batch = self._batch(state)
        own = tree.map_tensors(lambda leaf: leaf, steps.xs)
        leaves, unflatten = tree.flatten(own)
        found = [0 if isinstance(leaf, Tensor) and leaf.shape[:1] == tuple(batch[:1]) else None for leaf in leaves]
        xs = unflatten(found) if steps.xs is not None else None
        return BatchDims(of_state, replace(steps, inputs=given, xs=xs, first=None, axis=None, answers=None))  # pyright: ignore[reportArgumentType]

    def _batch(self, state: Any) -> list[int]:
        pairs = zip(tree.flatten(state)[0], state_dims(state, self.batch_dim), strict=True)
        return [leaf.shape[dim] for leaf, dim in pairs if dim is not None]


def _where(rows: Tensor, found: Any, others: Any, batch: int) -> Any:
    """Return an answer with these rows of `found`, the others as they are in another, zeros if there is none yet."""
    leaves, unflatten = tree.flatten(rows_of_samples(found, batch))
    before = [None] * len(leaves) if others is None else tree.flatten(others)[0]
    return unflatten([kept(rows, *pair, 0) for pair in zip(leaves, before, strict=True)])


def _of_rows(leaf: Tensor, ends: Tensor) -> Tensor:
    """Return x of an update of its own for each sample, from (updates, batch, ...)."""
    return leaf[ends] if leaf.dim() == 1 else leaf[ends, torch.arange(len(ends), device=leaf.device)]
