"""A cell with what a call of an estimator adds to it: an input per update, a readout, a first step, lengths."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from loopgrad.gradients import tree
from loopgrad.gradients.graphs import plus
from loopgrad.gradients.invertible import Invertible, Note, Undone, invertible, undoing
from loopgrad.gradients.noise import generators_apart
from loopgrad.gradients.outputs import Answers, Taken
from loopgrad.gradients.rows_going import of_rows
from loopgrad.gradients.wrappers import unwrapped


@dataclass(frozen=True)
class Steps:
    """What the updates of a `Stepwise` cell read beside the state; its inputs, for an estimator.

    Attributes:
        inputs: The same for all updates.
        xs: Tree of tensors with an axis for the updates from `first` on; or `Slices` of such; None where there are
            none.
        first: Number of the first update of xs.
        axis: Dimension of the updates in xs.
        answers: Takes what the readout gives; None where it is not asked.
    """

    inputs: Any
    xs: Any = None
    first: int = 0
    axis: int = 0
    answers: Answers | Taken | None = None

    read_only: ClassVar[bool] = True

    def at(self, step: int) -> Any:
        """Return x_t."""
        if self.xs is None:
            return None
        if isinstance(self.xs, Slices):
            return self.xs.at(step)
        return tree.map_tensors(lambda leaf: leaf.select(axis_of(leaf, self.axis), step - self.first), self.xs)


class Slices:
    """The inputs of single updates, cut once: cut one by one, each would have a gradient of the size of all."""

    def __init__(self, steps: Steps, numbers: range):
        leaves, self._unflatten = tree.flatten(steps.xs)
        start, count = numbers.start - steps.first, len(numbers)
        self._first = numbers.start
        axis = steps.axis
        self._cut = [_cut(leaf, axis, start, count) if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def at(self, step: int) -> Any:
        """Return the tree of one update."""
        i = step - self._first
        return self._unflatten([part[i] if isinstance(part, tuple) else part for part in self._cut])


def without_graphs(inputs: Any) -> Answers | None:
    """Have answers kept without the graphs that they come with; return what keeps them, None if nobody is asked."""
    if not isinstance(inputs, Steps) or not isinstance(inputs.answers, Answers):
        return None
    inputs.answers.graph = False
    return inputs.answers


def asks(inputs: Any) -> bool:
    """Whether these are inputs of updates on whose way a readout is asked."""
    return isinstance(inputs, Steps) and inputs.answers is not None


def callers(cell: nn.Module) -> nn.Module:
    """Return the caller's own cell in one that was put around it."""
    while isinstance(cell, Stepwise) or getattr(cell, "is_around", False):
        cell = cell.cell  # pyright: ignore[reportAssignmentType]
    return cell


def axis_of(leaf: Tensor, axis: int) -> int:
    """Return the dimension of the updates in a leaf: what has one number per update has no other."""
    return min(axis, leaf.dim() - 1)


def _cut(leaf: Tensor, axis: int, start: int, count: int) -> tuple[Tensor, ...]:
    axis = axis_of(leaf, axis)
    whole = start == 0 and count == leaf.shape[axis]
    return (leaf if whole else leaf.narrow(axis, start, count)).unbind(axis)


def cut(inputs: Any, numbers: range) -> Any:
    """Return inputs with xs cut for some updates, where there are xs."""
    if not isinstance(inputs, Steps) or inputs.xs is None or isinstance(inputs.xs, Slices) or not numbers:
        return inputs
    return replace(inputs, xs=Slices(inputs, numbers))


class Stepwise(nn.Module):
    """Calls a cell with the input of each update, keeps rows that are done, and asks the readout.

    Args:
        cell: The caller's cell.
        readout: Called as readout(state, inputs, x_t, step) after update t; None for the state itself.
        start: Number of the first update, for the cell and the readout.
        lengths: (batch,) number of updates per row; None for all.
        dims: Dimension of the batch in each leaf of the state, if there are lengths.
    """

    def __init__(
        self,
        cell: nn.Module,
        readout: Any,
        start: int = 0,
        lengths: Tensor | None = None,
        dims: Sequence[int | None] = (),
    ):
        super().__init__()
        self.cell, self.readout, self.start = cell, readout, start
        self.lengths, self.dims = lengths, list(dims)

    @property
    def period(self) -> Any:
        """That of the cell."""
        return getattr(unwrapped(self.cell), "period", 1)

    def forward(self, state: Any, inputs: Any, step: int) -> Any:
        """Apply update number `step` of this rollout; `inputs` are `Steps`."""
        steps: Steps = inputs
        x = steps.at(step)
        if self.lengths is None:
            after = self.cell(state, self.given(steps, x), self.start + step)
        else:
            before = tree.flatten(state)[0]
            with of_rows(self.lengths > step):
                after = self.cell(state, self.given(steps, x), self.start + step)
            after = self.with_rows_done(before, after, step)
        if steps.answers is not None:
            if steps.answers.wants(step):
                steps.answers.put(step, self.asked(after, steps, x, step))
            elif step < 2 and steps.answers.shown:
                self._shown(after, steps, x, step)
        return after

    def _shown(self, state: Any, steps: Steps, x: Any, step: int) -> None:
        """Ask the readout, for whoever watches the first updates to see what it reads; it leaves no trace."""
        if not isinstance(self.readout, nn.Module):
            with generators_apart(state):
                self.asked(state, steps, x, step)

    def once(self, plain: Any, steps: Steps) -> Any:
        """Return an answer to a plain state for its shapes alone, without a graph; it leaves no trace."""
        with torch.no_grad(), generators_apart(plain):
            return self._answer(plain, steps, steps.at(0), 0)

    def given(self, steps: Steps, x: Any) -> Any:
        """Return what the cell gets as inputs: x_t beside them, or in their place."""
        own = tree.own_containers(steps.inputs)
        return own if steps.xs is None else x if own is None else (own, x)

    def asked(self, state: Any, steps: Steps, x: Any, step: int) -> Any:
        """Return the answer of the readout to the state after an update."""
        return self._answer(self.plain(state), steps, x, step)

    def _answer(self, plain: Any, steps: Steps, x: Any, step: int) -> Any:
        if self.readout is None:
            return plain
        answer = self.readout(plain, steps.inputs, x, self.start + step)
        return answer if self.lengths is None else self._of_rows_going(answer, self.lengths, step)

    def plain(self, state: Any) -> Any:
        """Return the plain state of one that updates have led to."""
        own = undoing(self.cell)
        return state if own is None else own.read(state)

    def _of_rows_going(self, answer: Any, lengths: Tensor, step: int) -> Any:
        """Return an answer with zeros in the rows that were done before the update."""
        rows = rows_of_samples(answer, len(lengths))
        return tree.map_tensors(lambda leaf: kept(lengths > step, leaf, None, 0), rows)

    def with_rows_done(self, before: Sequence[Any], after: Any, step: int) -> Any:
        """Return the state after an update, of rows that were done already as it was before."""
        assert self.lengths is not None
        leaves, unflatten = tree.flatten(after)
        if len(leaves) != len(before):
            return after  # another structure, which is for the caller to refuse
        if [_shape(leaf) for leaf in leaves] != [_shape(leaf) for leaf in before]:
            self._refuse_shapes(before, after)
        going = self.lengths > step
        return unflatten([kept(going, *pair) for pair in zip(leaves, before, self.dims, strict=True)])

    def _refuse_shapes(self, before: Sequence[Any], after: Any) -> None:
        for (name, new), old, dim in zip(tree.leaves_with_names(after, "state"), before, self.dims, strict=True):
            if _shape(new) != _shape(old) and (dim is not None or _shape(new)):
                raise ValueError(
                    f"{name} goes from shape {_shape(old)} to {_shape(new)}, and rows that are done keep their state: "
                    "give it its full size in z_0, and zeros in place of None"
                )


def rows_of_samples(answer: Any, batch: int) -> Any:
    """Return the answer of a readout; raise ValueError if it has no row per sample."""
    for name, leaf in tree.leaves_with_names(answer, "readout(...)"):
        if isinstance(leaf, Tensor) and leaf.shape[:1] != (batch,):
            raise ValueError(
                f"{name} has shape {tuple(leaf.shape)}: with lengths a readout must give (batch, ...), one answer "
                "per sample, for those of samples that are done to be left out"
            )
    return answer


def _shape(leaf: Any) -> tuple[int, ...] | None:
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else None


def kept(going: Tensor, new: Any, old: Any, dim: int | None) -> Any:
    """Return the rows of `new` that go on and the others of `old`, zeros if that is None."""
    if dim is None or new is old or not isinstance(new, Tensor) or (old is not None and new.shape != old.shape):
        return new
    return torch.where(going.view(-1, *[1] * (new.dim() - dim - 1)), new, 0 if old is None else old)


class StepwiseInvertible(Stepwise, Invertible):
    """The same of a cell whose updates can be undone."""

    @property
    def exact(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the cell."""
        return invertible(self.cell).exact

    @property
    def safe_length(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the cell."""
        return invertible(self.cell).safe_length

    def forward(self, state: Any, inputs: Any, step: int, undo: Note | None = None) -> Any:
        """Apply the update, or undo it; the readout is asked by whoever undoes."""
        if undo is None:
            return Stepwise.forward(self, state, inputs, step)
        undone = self.cell(state, self.given(inputs, inputs.at(step)), self.start + step, undo)
        if self.lengths is None or not isinstance(undone, Undone):
            return undone
        return replace(undone, before=self.with_rows_done(tree.flatten(state)[0], undone.before, step))

    def pull_at(self, step: int, images: list[Tensor | None], gradients: list[Tensor | None]) -> Any:
        """That of the cell for the rows that went on; those of the others come around the update."""
        if self.lengths is None:
            return self.pull(images, gradients)
        going = self.lengths > step
        pairs = list(zip(gradients, self.dims, strict=True))
        seeds, before = self.pull(images, [kept(going, grad, None, dim) for grad, dim in pairs])
        around = [kept(~going, grad, None, dim) for grad, dim in pairs]
        return seeds, [g if dim is None else plus(g, a) for g, a, dim in zip(before, around, self.dims, strict=True)]

    def pull(self, images: list[Tensor | None], gradients: list[Tensor | None]) -> Any:
        """That of the cell."""
        return invertible(self.cell).pull(images, gradients)

    def couple(self, state: Any) -> Any:
        """That of the cell."""
        return invertible(self.cell).couple(state)

    def current(self, state: Any) -> Any:
        """That of the cell."""
        return invertible(self.cell).current(state)

    def read(self, state: Any) -> Any:
        """That of the cell."""
        return invertible(self.cell).read(state)

    def note(self, state: Any, after: Any, step: int) -> Note:
        """That of the cell."""
        return invertible(self.cell).note(state, after, self.start + step)

    def verified(self, state: Any) -> list[Tensor]:
        """That of the cell."""
        return invertible(self.cell).verified(state)
