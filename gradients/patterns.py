"""Where the derivatives of an update and of a readout are other than zero, as a probe at random states finds it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients.columns import Columns, colours_of, identity_colours, noise_like
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.graphs import alias, is_floating, leaf_view, next_number, search
from loopgrad.gradients.row_layout import RowLayout

_PROBES = 16  # of samples at least, each at a random state: what a ReLU turns off in one of them it does not in all


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
    """Return the patterns of the first cycle of an `OnlinePass`, found at random states and inputs.

    A vector-Jacobian product for each feature, with random weights for rows, tells which columns it depends on.
    """
    count = min(period_of(run.cell.cell), run.num_steps)
    generator = torch.Generator().manual_seed(0)
    asks = run.saving is not None and run.saving.count > 0
    pattern = state = answer = None
    with run.conditions.restored(run.cell.cell) as buffers:
        for _ in range(rounds(run.rows.batch or 1)):
            for step in range(count):
                leaves = [alias(leaf, True) for leaf in noise_like(run.start, generator)]
                others = run.cell.stand_ins([tensor.requires_grad for tensor in run.cell.others])
                others = run.cell.narrowed(others, step, step + 1)
                moved = noise_like(others[: run.cell.num_inputs], generator)
                for i, tensor in enumerate(moved):
                    others[i] = alias(tensor, others[i].requires_grad)
                views = run.cell.leaf_views(others)
                after = run.update([leaf_view(leaf) for leaf in leaves], views, buffers, step)
                of_state, of_columns = _depends(run, after, run.rows, leaves, others, columns, generator)
                run.stats.cell_evaluations += 1
                pattern = of_columns if pattern is None else pattern | of_columns
                state = of_state if state is None else state | of_state
                if asks:
                    leaves = [alias(leaf, True) for leaf in after]
                    told = run.answer([leaf_view(leaf) for leaf in leaves], views, buffers, step)
                    _, seen = _depends(run, told, run.of_answer, leaves, others, columns, generator)
                    answer = seen if answer is None else answer | seen
    assert pattern is not None and state is not None
    of_answer = None if answer is None else colours_of(answer)
    return Patterns(pattern, colours_of(pattern), state, answer, of_answer, _reached(run, count))


def rounds(batch: int) -> int:
    """Return how many times a probe runs the first cycle on a batch."""
    return max(2, -(-_PROBES // max(batch, 1)))


def _depends(
    run: Any,
    found: Sequence[Any],
    rows: RowLayout | None,
    leaves: Sequence[Any],
    others: Sequence[Tensor],
    columns: Columns,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return on which features (outputs, features) and columns (outputs, width) what is `found` depends."""
    device = columns.local.device
    matrix = torch.zeros(1, 0) if rows is None else rows.join(list(filter(is_floating, found)))
    of_state = torch.zeros(matrix.shape[1], columns.features, dtype=torch.bool, device=device)
    of_columns = torch.zeros(matrix.shape[1], columns.width, dtype=torch.bool, device=device)
    if not matrix.requires_grad:
        return of_state, of_columns
    groups = [(tensor, group) for tensor, group in zip(others, columns.of_others, strict=True) if group is not None]
    floating, weights = list(filter(is_floating, leaves)), torch.randn(len(matrix), generator=generator).to(matrix)
    asked = [*floating, *(tensor for tensor, _ in groups)]
    for i in run.asked(matrix.shape[1]):
        given = torch.autograd.grad(matrix[:, i], asked, weights, retain_graph=True, allow_unused=True)
        of_state[i] = (run.rows.join(given[: len(floating)]) != 0).any(0)
        for gradient, (_, group) in zip(given[len(floating) :], groups, strict=True):
            if gradient is not None:
                seen = gradient.reshape(group.lead, group.width) != 0
                of_columns[i, group.local : group.local + group.width] = seen.any(0)
    run.stats.vjps += matrix.shape[1]
    return of_state, of_columns


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
