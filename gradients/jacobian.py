"""Jacobian regularisation: a loss term that makes a recursion contract, so that it has a fixed point to converge to."""

from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.gradients import tree
from loopgrad.gradients.batch_first import batch_first
from loopgrad.gradients.cell_call import check_cell
from loopgrad.gradients.contract import period_of, run
from loopgrad.gradients.graphs import alias, is_floating, merged, requires_grad
from loopgrad.gradients.plain_attention import PlainAttention
from loopgrad.gradients.row_layout import RowLayout
from loopgrad.gradients.untouched import Untouched


def jacobian_penalty(
    cell: nn.Module,
    state: Any,
    inputs: Any,
    num_steps: int,
    generator: torch.Generator | None = None,
    num_probes: int = 1,
    *,
    batch_dim: Any = 0,
    place: tuple[int, int] | None = None,
) -> Tensor:
    """Return an unbiased estimate of |J|_F^2 / n, averaged over samples, with J the Jacobian of the cycle map at state.

    Hutchinson's estimate: the mean of |J^T v|^2 / n over Gaussian v, for n features per sample. Add a small multiple
    (1e-2 to 1, say) of it to the loss. The state is a constant in it; parameters and inputs get its gradient.

    Args:
        cell: Called as cell(state, inputs, step).
        state: Where to take J, such as the last state of a rollout.
        inputs: What the cell reads.
        num_steps: Length T of the recursion: the updates T - period .. T - 1 make up the cycle map.
        generator: Source of v, on the device of the state; None for the global one.
        num_probes: Vectors v.
        batch_dim: Where the batch is, as estimators are told.
        place: First row and size of the batch of which these samples are some rows, so that v is theirs of the whole.

    Cost:
        One cycle, and per probe one vector-Jacobian product with a graph, about two more cycles in time and memory.
    Not recommended when:
        The cell uses an operator without second derivatives; attention is run by its plain kernel.
        The Frobenius norm bounds the spectral radius loosely: the penalty also costs what it need not.
    Reference:
        Bai et al. 2021, arXiv 2106.14342.

    Raises:
        ValueError: num_probes is below 1, or num_steps less than a cycle; batch_dim does not fit the state.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import Stationary, jacobian_penalty
        >>> cell = Stationary(lambda z, x: 0.5 * z + x)
        >>> v = torch.Generator().manual_seed(0)
        >>> jacobian_penalty(cell, torch.zeros(2, 3), torch.ones(2, 3), 1, v, num_probes=500).round(decimals=1)
        tensor(0.2000)
    """
    check_cell(cell)
    period = period_of(cell)
    if num_probes < 1 or num_steps < period:
        raise ValueError(
            f"num_probes={num_probes} must be at least 1, num_steps={num_steps} a cycle ({period}) or more"
        )
    cell, state, inputs = batch_first(cell, state, inputs, batch_dim)
    leaves, unflatten = tree.flatten(state)
    leaves = [alias(leaf, True) for leaf in leaves]
    rows, total = RowLayout(leaves, per_sample=True), torch.zeros(())
    with Untouched(), PlainAttention():
        after = run(cell, unflatten(list(leaves)), inputs, range(num_steps - period, num_steps))
        outputs = [leaf for leaf in tree.flatten(after)[0] if requires_grad(leaf)]
        for _ in range(num_probes):
            probes = [_drawn(o, generator, place) for o in outputs]
            if outputs:
                floating = list(filter(is_floating, leaves))
                found = torch.autograd.grad(outputs, floating, probes, create_graph=True, allow_unused=True)
                products = rows.join(merged(found, leaves))
                total = total.to(products) + products.square().mean() / num_probes
    return total


def _drawn(like: Tensor, generator: torch.Generator | None, place: tuple[int, int] | None) -> Tensor:
    """Return Gaussian numbers in the shape of a tensor, of the whole batch or of rows of it."""
    first, total = place or (0, len(like))
    numbers = torch.randn((total, *like.shape[1:]), generator=generator, dtype=like.dtype, device=like.device)
    return numbers if place is None else numbers[first : first + len(like)]
