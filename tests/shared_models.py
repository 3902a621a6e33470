"""A model whose cell processes share, its estimators, and the gradient of one process on the whole batch."""

from collections.abc import Callable
from unittest import mock

import torch
from torch import nn

from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    CompressedBPTT,
    Estimator,
    ForwardGradient,
    ForwardMode,
    ImplicitGradient,
    PhantomGradient,
    RandomTruncation,
    RandomUpdates,
    ReversibleBPTT,
    TruncatedBPTT,
)
from loopgrad.models import Damped, Leapfrog

NUM_STEPS, ROWS = 7, 6
ESTIMATORS: dict[str, Callable[[], Estimator]] = {
    "bptt": BPTT,
    "checkpointed": CheckpointedBPTT,
    "checkpointed 1": lambda: CheckpointedBPTT(1),
    "binomial": lambda: CheckpointedBPTT("binomial", num_snapshots=2),
    "budget": lambda: CheckpointedBPTT(memory_budget="30KiB"),
    "compressed": lambda: CompressedBPTT(rank=99),
    "truncated": lambda: TruncatedBPTT(num_cycles=1),
    "random updates": lambda: TruncatedBPTT(scope=RandomUpdates(0.5, seed=3)),
    "random truncation": lambda: RandomTruncation(mean_steps=3, seed=5),
    "phantom": lambda: PhantomGradient(num_steps=2),
    "reversible damped": ReversibleBPTT,
    "reversible leapfrog": ReversibleBPTT,
    "implicit solved": lambda: ImplicitGradient(rtol=0, max_vjps=8, on_unconverged="ignore"),
    "implicit fallback": lambda: ImplicitGradient(forward_rtol=0, max_gradient_error=0),
    "forward mode": lambda: ForwardMode(),
    "forward state": lambda: ForwardGradient(seed=3),
    "forward central": lambda: ForwardGradient(mode="central", seed=3),
    "forward weights": lambda: ForwardGradient(perturb="weights", window=0, seed=3),
}
COUPLED = {"reversible damped": lambda cell: Damped(cell, "1/4"), "reversible leapfrog": lambda cell: Leapfrog(cell)}
NOISY = (
    "forward state",
    "forward central",
    "forward weights",
)  # noise of its own on each process: no equal of one process


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, z):
        return z + 0.3 * torch.tanh(self.down(torch.tanh(self.up(z))))


class Cell(nn.Module):
    """Two updates make a cycle, and only the first reads the input."""

    period = 2

    def __init__(self):
        super().__init__()
        self.blocks, self.out = nn.ModuleList([Block(), Block()]), nn.Linear(4, 4)

    def forward(self, state, inputs, step):
        y = state
        for block in self.blocks:
            y = block(y)
        return 0.5 * torch.tanh(self.out(y) + inputs) if step % 2 == 0 else 0.5 * torch.tanh(self.out(y) - state)


class Model(nn.Module):
    """An encoder, a recursion and the mean square of its last state; returns the rollout if `whole`."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64, whole: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, cell = nn.Linear(4, 4), Cell()
        self.cell = COUPLED[name](cell) if name in COUPLED else cell
        self.estimator, self.whole = ESTIMATORS[name](), whole
        self.to(dtype)

    @property
    def inner(self) -> Cell:
        return next(module for module in self.modules() if isinstance(module, Cell))

    def forward(self, x):
        x = self.encoder(x)
        rollout = self.estimator(self.cell, torch.zeros_like(x), x, NUM_STEPS)
        return rollout if self.whole else loss_of(rollout)


def loss_of(rollout):
    return rollout.state.square().mean()


def batch(dtype: torch.dtype = torch.float64):
    x = torch.randn(ROWS, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x.to(dtype)


def rows(rank: int, dtype: torch.dtype = torch.float64):
    return batch(dtype)[ROWS // 2 * rank : ROWS // 2 * (rank + 1)]


def of_one_process(way: str, name: str) -> list[torch.Tensor | None]:
    """The gradient of one process on the whole batch.

    Where it cannot be the same, for noise that differs from rank to rank and for bfloat16, whose sums are not those of
    the whole batch, it is the mean of what one process finds on the rows of each rank.
    """
    dtype = torch.bfloat16 if way.startswith("bf16") else torch.float64
    wide = torch.promote_types(dtype, torch.float32)
    apart = way.startswith("bf16") or name in NOISY
    given = [(0, batch(dtype))] if not apart or way == "tensor" else [(rank, rows(rank, dtype)) for rank in (0, 1)]
    found = [_gradient(way, name, dtype, *one) for one in given]
    columns = zip(*found, strict=True)
    return [None if c[0] is None else sum(g.to(wide) for g in c) / len(c) for c in columns]


def _gradient(way: str, name: str, dtype: torch.dtype, rank: int, x: torch.Tensor) -> list[torch.Tensor | None]:
    model = Model(name, dtype)
    with (
        mock.patch("torch.distributed.is_initialized", lambda: True),
        mock.patch("torch.distributed.get_rank", lambda: rank),
    ):
        for _ in range(2):
            if way != "ddp no_sync":
                model.zero_grad()
            model(x).backward()
    return [parameter.grad for parameter in model.parameters()]
