"""Two processes under DistributedDataParallel give the gradient of the whole batch, and its hooks fire once."""

import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    ImplicitGradient,
    PhantomGradient,
    ReversibleBPTT,
    TruncatedBPTT,
)
from loopgrad.models import Damped

ESTIMATORS = [
    BPTT(),
    CheckpointedBPTT(),
    TruncatedBPTT(num_steps=2),
    ReversibleBPTT(),
    ImplicitGradient(rtol=0, max_vjps=8, on_unconverged="ignore"),
    ImplicitGradient(forward_rtol=0, max_gradient_error=0),
    PhantomGradient(num_steps=2),
]
NUM_STEPS = 7


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, state, inputs, step):
        return torch.tanh(self.linear(state) + inputs)


class Model(nn.Module):
    def __init__(self, estimator):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.encoder, self.estimator = Cell(), nn.Linear(4, 4, dtype=torch.float64), estimator
        if isinstance(estimator, ReversibleBPTT):
            self.cell = Damped(self.cell, "1/4")

    def forward(self, x):
        x = self.encoder(x)
        return self.estimator(self.cell, torch.zeros_like(x), x, NUM_STEPS).state.square().mean()


def batch():
    return torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = []
    for estimator in ESTIMATORS:
        model = DistributedDataParallel(Model(estimator))
        for _ in range(2):  # a second pass fails if the first left a hook unfinished
            model.zero_grad()
            model(batch()[3 * rank : 3 * rank + 3]).backward()
        found.append([p.grad for p in model.module.parameters()])
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_give_the_gradient_of_the_whole_batch():
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (folder,), nprocs=2)
        ranks = [torch.load(Path(folder) / f"{rank}.pt") for rank in (0, 1)]
    for estimator, first, second in zip(ESTIMATORS, *ranks, strict=True):
        model = Model(estimator)
        model(batch()).backward()
        for ours, theirs, parameter in zip(first, second, model.parameters(), strict=True):
            assert torch.equal(ours, theirs)
            torch.testing.assert_close(ours, parameter.grad, rtol=1e-12, atol=1e-14)
