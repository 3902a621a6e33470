"""Where the derivatives of an update and of a readout are other than zero, as a probe at random states finds it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients.columns import Columns, colours_of, identity_colours, noise_like
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.graphs import alias, is_floating, leaf_view, next_number, search
from loopgrad.gradients.online_update import Pushing
from loopgrad.gradients.tangents import Carrying

_PROBES = 2  # at so many random states each: a number that is zero by accident in one of them is not in the other


@dataclass
class Patterns:
    """Where derivatives may be other than zero.

    Attributes:
        update: (features, width) of an update by the columns.
        colours: Of these columns, and how many there are.
        state: (features, features) of an update by the state.
        answer: (answers, width) of the readout; None without one.
        of_answer: Colours of the columns in it.
        reached: Of each source, whether the recursion reads it at all.
    """

    update: Tensor
    colours: tuple[Tensor, int]
    state: Tensor
    answer: Tensor | None
    of_answer: Any
    reached: list[bool]


def probed(run: Any, columns: Columns) -> Patterns:
    """Return the patterns of the first cycle of an `OnlinePass`, found at random states and inputs."""
    count = min(period_of(run.cell.cell), run.num_steps)
    device, generator = columns.local.device, torch.Generator().manual_seed(0)
    every = torch.arange(columns.width, device=device), columns.width
    pattern = torch.zeros(columns.features, columns.width, dtype=torch.bool, device=device)
    state, answer = torch.zeros(columns.features, columns.features, dtype=torch.bool, device=device), None
    pushing = Pushing(columns, torch.ones_like(pattern), every, generator)
    with run.conditions.restored(run.cell.cell) as buffers, Carrying(run.cell.cell):
        for _ in range(_PROBES):
            for step in range(count):
                others = run.cell.narrowed(run.cell.others, step, step + 1)
                given = run.cell.num_inputs
                others = [*noise_like(others[:given], generator), *others[given:]]

                def update(leaves: list, read: list, step: int = step, buffers: Any = buffers) -> list:
                    return run.update(leaves, read, buffers, step)

                def ask(leaves: list, read: list, step: int = step, buffers: Any = buffers) -> list:
                    return run.answer(leaves, read, buffers, step)

                start = noise_like(run.start, generator)
                made = pushing(update, start, others, lambda _: run.rows, step)
                run.stats.cell_evaluations += 1
                pattern |= (made.tangents != 0).any(1).T
                state |= (made.through != 0).any(0)
                if run.saving is not None and run.saving.count:
                    told = pushing(ask, made.leaves, others, lambda _: run.of_answer, step)
                    seen = (told.tangents != 0).any(1).T
                    answer = seen if answer is None else answer | seen
    reached = _reached(run, count)
    of_answer = None if answer is None else colours_of(answer)
    return Patterns(pattern, colours_of(pattern), state, answer, of_answer, reached)


def dense(run: Any, columns: Columns) -> Patterns:
    """Return patterns in which nothing is zero."""
    device, width = columns.local.device, columns.width
    pattern = torch.ones(columns.features, width, dtype=torch.bool, device=device)
    state = torch.ones(columns.features, columns.features, dtype=torch.bool, device=device)
    answer = None
    if run.of_answer is not None:
        answer = torch.ones(run.of_answer.width, width, dtype=torch.bool, device=device)
    elif run.saving is not None:
        answer = pattern[:0]
    colours = identity_colours(pattern)
    reached = _reached(run, run.num_steps)
    return Patterns(pattern, colours, state, answer, colours, reached)


def _reached(run: Any, count: int) -> list[bool]:
    """Return of each source whether the graph of one of the first updates, or of its answer, ends at it."""
    cell, leaves = run.cell, [alias(leaf, True) for leaf in run.start]
    others = cell.stand_ins([tensor.requires_grad for tensor in cell.others])
    of_state, of_others = [False] * sum(map(is_floating, leaves)), [False] * len(others)
    with run.conditions.restored(cell.cell) as buffers:
        for step in range(count):
            since, read = next_number(), cell.narrowed(others, step, step + 1)
            views = cell.leaf_views(read)
            after = run.update([leaf_view(leaf) for leaf in leaves], views, buffers, step)
            run.stats.cell_evaluations += 1
            outputs = list(after)
            if run.saving is not None and run.saving.count:
                outputs += run.answer(after, views, buffers, step)
            found = set(map(id, search(outputs, since).leaves))
            of_others = [before or id(t) in found for before, t in zip(of_others, read, strict=True)]
            if step == 0:
                of_state = [id(leaf) in found for leaf in leaves if is_floating(leaf)]
            leaves = [alias(leaf, False) for leaf in after]
    answers = len(cell.sources) - len(of_state) - len(of_others)
    return [*of_state, *[False] * answers, *of_others]
