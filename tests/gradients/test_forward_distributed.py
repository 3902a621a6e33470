"""Two processes: noise differs though seeds agree, gradients are one, and the error falls with the number of ranks."""

import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from loopgrad.gradients import BPTT, ForwardGradient

DRAWS, TANGENTS, STEPS = 150, 8, 5


class Model(nn.Module):
    def __init__(self, estimator):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.estimator = nn.Linear(6, 6, dtype=torch.float64), estimator

    def forward(self, x):
        return self.estimator(_Cell(self.linear), torch.zeros_like(x), x, STEPS).state.square().sum()


class _Cell(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, state, inputs, step):
        return torch.tanh(self.linear(state) + inputs)


def batch():
    return torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradient(model):
    model.zero_grad()
    model(batch()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = DistributedDataParallel(Model(ForwardGradient(TANGENTS, "weights", 0, seed=0)))
    torch.save(torch.stack([gradient(model) for _ in range(DRAWS)]), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_stay_identical_and_two_of_them_halve_the_error():
    """K relMSE = P - 1 for one process; both see the same batch, so two ranks with noise of their own give half."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, args=(folder,), nprocs=2)
        ranks = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(*ranks)
    exact = gradient(Model(BPTT()))
    constant = TANGENTS * (ranks[0] - exact).square().sum(1).mean() / exact.square().sum()
    assert abs(constant / ((exact.numel() - 1) / 2) - 1) < 0.2
