"""Sign descent on the rows of a table that a batch has read: how HRM and TRM learn a vector per puzzle."""

from collections.abc import Callable, Iterable
from typing import Any

import torch


class SparseSignSGD(torch.optim.Optimizer):
    """w_i <- (1 - r d) w_i - r sign(g_i) for the rows i that the batch has read; no other row is touched.

    g_i is the sum over all samples of the batch that read row i. Gradients must be sparse, which tell the rows, as
    `torch.nn.functional.embedding(ids, table, sparse=True)` gives them: a row that was read is decayed even where its
    gradient is zero, and one that was not read keeps its value. Adam is about this where rows are seldom read.

    Args:
        params: Tables (rows, size), or groups of them.
        lr: r, at least 0.
        weight_decay: d, at least 0; decoupled.

    Cost:
        Nothing is kept; time and memory grow with the rows of the batch, not with the table.

    Raises:
        ValueError: A value is out of range.
        TypeError: A gradient is dense.

    Reference:
        Wang et al. 2025, arXiv 2506.21734 (models/sparse_embedding.py of its code); Bernstein et al. 2018,
        arXiv 1802.04434 (the sign).

    Example:
        >>> import torch
        >>> from loopgrad.experiments.trainer import SparseSignSGD
        >>> table = torch.nn.Parameter(torch.ones(4, 1))
        >>> rows = torch.nn.functional.embedding(torch.tensor([1, 1, 3]), table, sparse=True)
        >>> (rows * torch.tensor([[1.0], [1.0], [0.0]])).sum().backward()
        >>> SparseSignSGD([table], lr=0.1, weight_decay=1.0).step()
        >>> [round(x, 3) for x in table.flatten().tolist()]
        [1.0, 0.8, 1.0, 0.9]
    """

    references = ("bernstein2018signsgd", "wang2025hierarchical")

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.0):
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name}={value} must be at least 0")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Do one step; a closure is called first, with gradients, and what it returns is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rate = group["lr"]
            for table in group["params"]:
                if table.grad is None:
                    continue
                if not table.grad.is_sparse:
                    raise TypeError(
                        "SparseSignSGD needs a sparse gradient, which tells the rows that were read: look the table up "
                        "by torch.nn.functional.embedding(ids, table, sparse=True)"
                    )
                gradient = table.grad.coalesce()  # one row for each that was read, summed over its samples
                rows = gradient.indices()[0]
                kept = table.index_select(0, rows).mul_(1 - rate * group["weight_decay"])
                table.index_copy_(0, rows, kept.add_(gradient.values().sign(), alpha=-rate))
        return loss
