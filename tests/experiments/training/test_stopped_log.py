"""A training log says which share of the samples has stopped, and nothing where none has."""

from dataclasses import dataclass

import pytest
import torch
from small_runs import TASK, model, trainer
from torch import nn

from loopgrad.experiments.training.loop import begin, train
from loopgrad.gradients import ImplicitGradient, PhantomGradient, TruncatedBPTT


class HandsOn(nn.Module):
    """A cell that leaves every other sample as it is."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.period = cell, cell.period

    def forward(self, state, inputs, step):
        after = self.cell(state, inputs, step)
        stands = {name: torch.arange(len(leaf)).view(-1, 1, 1) % 2 == 0 for name, leaf in state.items()}
        return {name: torch.where(stands[name], leaf, after[name]) for name, leaf in state.items()}


def standing(kind):
    @dataclass(frozen=True)
    class Standing(kind):
        def rollout(self, cell, state, inputs, num_steps):
            return super().rollout(HandsOn(cell), state, inputs, num_steps)

    return Standing


@pytest.mark.parametrize("kind", [TruncatedBPTT, PhantomGradient, ImplicitGradient])
def test_a_log_says_which_share_of_the_samples_has_stopped(kind):
    it = trainer(train_steps=2, batch_size=4)
    how = {"num_cycles": 1} if kind is TruncatedBPTT else {}
    logs = [list(train(begin(it, TASK, model(), 0), it, TASK, e(**how), 0)) for e in (standing(kind), kind)]
    assert [entry["stopped"] for entry in logs[0]] == [0.5, 0.5]
    assert logs[1][0].keys() == logs[0][0].keys() - {"stopped"}
