"""What answers on the way cost in bytes: nothing where they are summed, their own where they are kept."""

import pytest
import torch
from torch import nn

from loopgrad.analysis import measure
from loopgrad.gradients import CheckpointedBPTT, ReversibleBPTT
from loopgrad.models import Leapfrog

BATCH, SIZE = 8, 16


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(SIZE, 64), nn.GELU(), nn.Linear(64, SIZE))

    def forward(self, state, inputs, step):
        return self.net(state + inputs)


def bytes_of(estimator, couple, num_steps, owned=(), **given):
    torch.manual_seed(0)
    cell, head, x = Cell(), nn.Linear(SIZE, 3), torch.randn(BATCH, SIZE)
    asked = {"readout": lambda z, inputs, x_t, step: head(z).logsumexp(1), **given}

    def run():
        return estimator(couple(cell, num_steps), torch.zeros(BATCH, SIZE), x, num_steps, **asked).outputs.sum()

    return measure(run, exclude=[cell, head, x, *owned], repeats=0)


def leapfrog(cell, num_steps):
    return Leapfrog(cell, scale=1 / num_steps)


@pytest.mark.parametrize("most", [64, pytest.param(4096, marks=pytest.mark.slow)])
def test_a_sum_under_a_coupling_keeps_the_same_bytes_at_any_length(most):
    short, long = (bytes_of(ReversibleBPTT(), leapfrog, steps, save="sum") for steps in (16, most))
    assert long.saved_bytes == short.saved_bytes and long.peak_bytes == short.peak_bytes
    plain = bytes_of(ReversibleBPTT(), leapfrog, 16)
    # the sum, its gradient, and the graph of one readout
    assert long.saved_bytes - plain.saved_bytes <= 2 * BATCH * 4 and long.peak_bytes < 1.5 * plain.peak_bytes


@pytest.mark.parametrize("num_steps", [64, pytest.param(256, marks=pytest.mark.slow)])
def test_all_answers_under_checkpoints_cost_themselves_and_enter_no_snapshot(num_steps):
    own = {"readout": lambda z, *_: z * 2}  # an answer as large as the state
    plain = bytes_of(CheckpointedBPTT(), lambda cell, _: cell, num_steps, **own)
    kept = bytes_of(CheckpointedBPTT(), lambda cell, _: cell, num_steps, **own, save="all")
    outputs = num_steps * BATCH * SIZE * 4
    assert kept.saved_bytes - plain.saved_bytes <= outputs
    # when backward runs, their gradient is there as well
    assert kept.peak_bytes - plain.peak_bytes <= 2 * outputs + 0.1 * plain.peak_bytes


@pytest.mark.slow
@pytest.mark.parametrize("save", ["sum", *(pytest.param(it, marks=pytest.mark.slow) for it in ("all", 4))])
def test_a_budget_holds_with_answers_whose_graphs_are_larger_than_the_cells(save):
    wide = nn.Linear(SIZE, 2048)
    given = {"readout": lambda z, *_: wide(z).tanh().square().mean(1), "save": save}
    for budget in (600 * 1024, 1200 * 1024):
        cost = bytes_of(CheckpointedBPTT(memory_budget=budget), lambda cell, _: cell, 64, **given, owned=[wide])
        assert cost.peak_bytes <= budget
