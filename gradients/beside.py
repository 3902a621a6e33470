"""Some updates, each run by itself, beside the same ones run at once: values, and products with a cotangent."""

from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients import tree
from loopgrad.gradients.batch_first import BatchFirst
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.newton import product
from loopgrad.gradients.recompute import run_without_graph
from loopgrad.gradients.side_by_side import SideBySide


def furthest(
    updates: SideBySide, inputs: Any, starts: Tensor, found: Tensor, products: bool, stats: Any
) -> tuple[float, float]:
    """Return how far the first updates, some in the middle and the last ones are off when each is run by itself.

    In their values over the largest of each update, and in their products with a fixed cotangent over the largest
    number of either; 0 where both runs give numbers that are not finite.

    Args:
        updates: All of them.
        inputs: What they read.
        starts: The states before each.
        found: Those after each, with the graph that leads there from `starts`.
        products: Whether products are compared too.
        stats: Take the cost.
    """
    cell, values, pulled = updates.cell, [], []
    seeds, together = torch.empty(0), None
    if products:
        seeds = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=found.dtype).to(found.device)
        together = product(found, starts, seeds)
        stats.vjps += 1
    for step in _sampled(updates.num_steps, updates.period):
        stats.cell_evaluations += 1
        if together is None:
            state = cell.unflatten_state(updates.rows.split(starts[step].detach(), cell.state))
            alone = run_without_graph(cell.cell, state, inputs, range(step, step + 1))
            alone = updates.rows.join(tree.flatten(alone)[0])
        else:
            with torch.enable_grad():
                start = starts[step].detach().requires_grad_()
                state = cell.unflatten_state(updates.rows.split(start, cell.state))
                alone = updates.rows.join(tree.flatten(cell.cell(state, tree.own_containers(inputs), step))[0])
            row = product(alone, start, seeds[step])
            stats.vjps += 1
            pulled.append(_apart(row, together[step], seeds[step]))
        values.append(_apart(alone.detach(), found[step].detach()))
    return tuple(float(torch.stack(it).max()) if it else 0.0 for it in (values, pulled))  # pyright: ignore[reportReturnType]


def _sampled(num_steps: int, period: int) -> list[int]:
    middle = num_steps // 2
    steps = {*range(min(2 * period, num_steps)), *range(middle, min(middle + period, num_steps))}
    return sorted(steps | set(range(num_steps - period, num_steps)))


def _apart(alone: Tensor, found: Tensor, beside: Tensor | None = None) -> Tensor:
    """Return the largest difference over the largest finite number; where both are lost there is no saying."""
    size = torch.where(alone.isfinite(), alone, 0).abs().amax()
    size = size if beside is None else torch.maximum(size, beside.abs().amax())
    apart = torch.where(alone.isfinite() | found.isfinite(), (alone - found).abs(), 0)
    return apart.amax() / size.clamp(min=torch.finfo(alone.dtype).tiny)


def others(owner: str, cell: FunctionalCell, what: str) -> str:
    """Say that updates run at once are not those that are run by themselves, why that may be and what to do."""
    dims, rows = "0", "have by chance as many rows as there are samples"
    if isinstance(cell.cell, BatchFirst):
        own = cell.cell.of_state.dims
        dims = f"{own[0] if len(set(own)) == 1 else cell.unflatten_state(own)}, 0"
        rows = (
            "have a batch that batch_dim does not tell (0 stands for its dimension in inputs, None where there is none)"
        )
    return (
        f"{owner} runs updates as further samples of a batch, and updates of this cell then {what}. Either it "
        "reads `step` other than by its period: give what an update reads as xs, or say cell.period. Or inputs "
        f"{rows}: say batch_dim=BatchDims({dims}). Or samples see each other, "
        "as in batch normalisation, or the batch has a fixed size: use BPTT() or CheckpointedBPTT()"
    )
