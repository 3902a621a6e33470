"""Truncated backpropagation of answers on the way: windows of updates, each run again and differentiated by itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from loopgrad.gradients.checkpointed_backward import CheckpointedPass, Reversal
from loopgrad.gradients.checks import refuse_second_derivative
from loopgrad.gradients.contract import Rollout, run
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import is_floating, plus, requires_grad, spread
from loopgrad.gradients.recursion_node import RecursionNode, joined
from loopgrad.gradients.schedule import Schedule
from loopgrad.gradients.stats import Stats
from loopgrad.gradients.stepwise import without_graphs
from loopgrad.gradients.stretches import Stretches
from loopgrad.gradients.untouched import Untouched


@dataclass(frozen=True)
class Window:
    """Updates that are differentiated together, from a state that counts as a constant.

    Attributes:
        updates: Their numbers.
        asked_from: First update whose answer's gradient goes through them.
    """

    updates: range
    asked_from: int


def overlapping(num_steps: int, every: int, length: int) -> list[Window]:
    """Return windows of `length` updates, one after every `every` updates and one at the end."""
    ends = [*range(every, num_steps, every), num_steps]
    return [Window(range(max(0, end - length), end), (i * every)) for i, end in enumerate(ends)]


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
        grads, first = spread(queue, cell.state), spread(needs, cell.state)
        beginnings = {start: i for i, start in enumerate(run.schedule.bounds)}
        of_first: list[Tensor | None] = [None] * len(first)
        with Untouched(cell.cell, run.conditions[0]):
            stretches = Stretches(cell, list(needs), run.saving, list(queue), run.prints)
            for window in reversed(run.windows):
                start = window.updates.start
                here = reversal.held[beginnings[start]]
                needed = [need and start == 0 for need in first]
                leaves, check = reversal.fetched(here), window is run.windows[-1]
                found = stretches.through(
                    leaves, here.conditions, needed, window.updates, grads, check, window.asked_from
                )
                if start == 0 and found is not None:
                    of_first = [plus(*pair) for pair in zip(of_first, found, strict=True)]
                grads = [None] * len(first)
            run.prints.judge(run.owner, run.verify)
        of_first = [grad for grad, leaf in zip(of_first, cell.state, strict=True) if is_floating(leaf)]
        return None, None, None, *of_first, *stretches.totals


def in_windows(
    cell: nn.Module, state: Any, inputs: Any, num_steps: int, windows: list[Window], owner: str, verify: str = "raise"
) -> Rollout:
    """Return the rollout whose answers, and last state, are differentiated in windows.

    Each update is run once, and once more in every window that it is part of; a state is stored per window.
    """
    if len(windows) == 1 and windows[0].updates == range(num_steps):
        return Rollout(run(cell, state, inputs, range(num_steps)), Stats(num_steps, num_steps))
    functional, answers = FunctionalCell(cell, state, inputs), without_graphs(inputs)
    bounds = sorted({0, num_steps, *(window.updates.start for window in windows)})
    schedule = Schedule(tuple(bounds), len(bounds) - 2, 0)
    saving = None if answers is None else answers.saving
    forward = WindowedPass(functional, schedule, False, verify, saving, windows=windows, owner=owner)
    last, kept = forward.run(inputs)
    leaves = joined(WindowedRecursion, forward, last, kept, functional.sources, answers)
    again = sum(len(window.updates) for window in windows) if any(map(requires_grad, functional.sources)) else 0
    return Rollout(functional.unflatten_state(leaves), Stats(num_steps + again, again))
