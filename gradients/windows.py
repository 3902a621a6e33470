"""Truncated backpropagation of answers on the way: windows of updates, each run again and differentiated by itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.gradients.checkpointed_backward import CheckpointedPass, Reversal
from loopgrad.gradients.checks import refuse_second_derivative
from loopgrad.gradients.contract import Rollout, run
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import is_floating, plus, requires_grad, spread
from loopgrad.gradients.recursion_node import RecursionNode, joined
from loopgrad.gradients.schedule import Schedule
from loopgrad.gradients.stats import Stats
from loopgrad.gradients.stepwise import kept, without_graphs
from loopgrad.gradients.stored_states import StoredStates
from loopgrad.gradients.stretches import Stretches
from loopgrad.gradients.untouched import Untouched


@dataclass(frozen=True)
class Window:
    """Updates that are differentiated together, from a state that counts as a constant.

    Attributes:
        updates: Their numbers.
        asked_from: First update whose answer's gradient goes through them.
        answering: Of each sample whether its answers have a part in it; None for all.
        ending: Of each sample whether its last state is that after the window; None if that of all is, or of none.
    """

    updates: range
    asked_from: int
    answering: Sequence[bool] | None = None
    ending: Sequence[bool] | None = None


def overlapping(num_steps: int, every: int, length: int, lengths: Sequence[int] | None = None) -> list[Window]:
    """Return windows of `length` updates, one after every `every` updates and one at the end.

    Args:
        num_steps: Number of updates.
        every: Updates between the ends of windows.
        length: Updates of a window.
        lengths: Updates of each sample, if they differ; then there is a window at each of their ends.
    """
    if lengths is None or min(length, every) >= num_steps or all(n == num_steps for n in lengths):
        ends = [*range(every, num_steps, every), num_steps]
        return [Window(range(max(0, end - length), end), (i * every)) for i, end in enumerate(ends)]
    found = []
    for end in sorted({*range(every, num_steps, every), *lengths} - {0}):
        ending = [n == end for n in lengths]
        answering = ending if end % every else [n >= end for n in lengths]
        found.append(Window(range(max(0, end - length), end), (end - 1) // every * every, answering, ending))
    return found


def consecutive(lengths: Sequence[int]) -> list[Window]:
    """Return windows of such lengths, one after the other."""
    found, start = [], 0
    for length in lengths:
        found.append(Window(range(start, start + length), start))
        start += length
    return found


@dataclass
class WindowedPass(CheckpointedPass):
    """A forward pass that stores the states at the beginnings of windows."""

    windows: list[Window] = field(default_factory=list)
    owner: str = ""
    dims: Sequence[int | None] = ()  # of the batch in the leaves of the state, where windows are of some samples

    def ending(self, window: Window, of_last: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return, of gradients of the last state, those of the samples that end with a window."""
        if window.ending is None:
            return list(of_last) if window is self.windows[-1] else [None] * len(of_last)
        return self._of_rows(window.ending, of_last, window is self.windows[-1])

    def unmoved(self, of_last: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return, of gradients of the last state, those of samples that have no update: their state is the first."""
        ends = [window.ending for window in self.windows if window.ending is not None]
        rows = [not any(of_row) for of_row in zip(*ends, strict=True)]
        return self._of_rows(rows, of_last, False) if any(rows) else [None] * len(of_last)

    def _of_rows(self, rows: Sequence[bool], of_last: Sequence[Tensor | None], of_none: bool) -> list[Tensor | None]:
        """Return the gradients of some samples, and where `of_none` those of leaves without a batch."""
        found = []
        for grad, dim in zip(of_last, self.dims, strict=True):
            if grad is not None and dim is not None:
                grad = kept(torch.tensor(rows, device=grad.device), grad, None, dim)
            found.append(grad if dim is not None or of_none else None)
        return found


class WindowedRecursion(RecursionNode):
    """The node of a `WindowedPass`."""

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        """Go through the windows from the last to the first; no gradient passes from one to another."""
        run: WindowedPass = ctx.run
        refuse_second_derivative(run.owner)
        reversal, cell = Reversal(run, ctx.saved_tensors), run.cell
        ctx.maybe_clear_saved_tensors()
        run.frozen.check()
        queue, needs = iter(cotangents), iter(ctx.needs_input_grad[3:])
        of_last, first = spread(queue, cell.state), spread(needs, cell.state)
        beginnings = {start: i for i, start in enumerate(run.schedule.bounds)}
        of_first: list[Tensor | None] = [None] * len(first)
        with Untouched(cell.cell, run.conditions[0]):
            stretches = Stretches(cell, list(needs), run.saving, list(queue), run.prints)
            for window in reversed(run.windows):
                start = window.updates.start
                here = reversal.held[beginnings[start]]
                needed, grads = [need and start == 0 for need in first], run.ending(window, of_last)
                leaves, check = reversal.fetched(here), window is run.windows[-1]
                found = stretches.through(
                    leaves, here.conditions, needed, window.updates, grads, check, window.asked_from, window.answering
                )
                if start == 0 and found is not None:
                    of_first = [plus(*pair) for pair in zip(of_first, found, strict=True)]
            run.prints.judge(run.owner, run.verify)
        of_first = [plus(*pair) for pair in zip(of_first, run.unmoved(of_last), strict=True)]
        of_first = [grad for grad, leaf in zip(of_first, cell.state, strict=True) if is_floating(leaf)]
        return None, None, None, *of_first, *stretches.totals


def in_windows(
    cell: nn.Module,
    state: Any,
    inputs: Any,
    num_steps: int,
    windows: list[Window],
    owner: str,
    verify: str = "raise",
    dims: Sequence[int | None] = (),
) -> Rollout:
    """Return the rollout whose answers, and last state, are differentiated in windows.

    Each update is run once, and once more in every window that it is part of; a state is stored per window. `dims` are
    those of the batch in the leaves of the state, where windows are of some samples.
    """
    if len(windows) == 1 and windows[0].updates == range(num_steps):
        return Rollout(run(cell, state, inputs, range(num_steps)), Stats(num_steps, num_steps))
    functional, answers = FunctionalCell(cell, state, inputs), without_graphs(inputs)
    bounds = sorted({0, num_steps, *(window.updates.start for window in windows)})
    schedule = Schedule(tuple(bounds), len(bounds) - 2, 0)
    saving = None if answers is None else answers.saving
    forward = WindowedPass(
        functional, schedule, StoredStates(None, False), verify, saving, windows=windows, owner=owner, dims=dims
    )
    last, kept = forward.run(inputs)
    leaves = joined(WindowedRecursion, forward, last, kept, functional.sources, answers)
    again = sum(len(window.updates) for window in windows) if any(map(requires_grad, functional.sources)) else 0
    return Rollout(functional.unflatten_state(leaves), Stats(num_steps + again, again))
