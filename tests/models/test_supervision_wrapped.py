"""Steps of deep supervision of a wrapped model equal those of the model itself."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from loopgrad.gradients import CheckpointedBPTT
from loopgrad.models import GRU, TRM, FixedSegments, LoopedTransformer, QHalt, initial_carry, predict, run_segment


@dataclass(frozen=True)
class Batch:
    inputs: torch.Tensor
    labels: torch.Tensor
    puzzle_ids: torch.Tensor


class Handing(nn.Module):
    """What a training library puts around a model."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


@pytest.fixture(scope="module", autouse=True)
def alone():
    """A group of one process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def draw(seed):
    generator = torch.Generator().manual_seed(seed)
    return Batch(*(torch.randint(0, 6, (4, 5), generator=generator) for _ in range(2)), torch.arange(4))


def steps(called, own, halting, count=2):
    """Losses of some steps, the gradients of the last one by name, and what is predicted afterwards."""
    losses, carry = [], initial_carry(called, draw(0))
    for step in range(count):
        own.zero_grad()
        found = run_segment(called, carry, draw(step), CheckpointedBPTT(), halting)
        found.loss.backward()
        losses.append(found.loss.item())
        carry = found.carry
    with torch.no_grad():
        answers = predict(called, draw(9).inputs, None, 2 if halting.max_segments > 1 else 1).logits
    return losses, {name: p.grad for name, p in own.named_parameters()}, answers


def trm():
    return TRM(6, 5, hidden_size=8, num_heads=2, num_layers=1, H_cycles=2, L_cycles=1)


MODELS = {
    "trm": (trm, FixedSegments(3)),
    "trm halting": (trm, QHalt(3, exploration=0.0)),
    "gru": (lambda: GRU(6, 5, hidden_size=8), FixedSegments(1)),
    "last loop": (
        lambda: LoopedTransformer(6, 5, hidden_size=8, num_heads=2, num_layers=1, num_loops=3, loss="last_loop"),
        FixedSegments(1),
    ),
}
WRAPPERS = {
    "parallel": DistributedDataParallel,
    "static": lambda model: DistributedDataParallel(model, static_graph=True),
    "unused": lambda model: DistributedDataParallel(model, find_unused_parameters=True),
    "handing": Handing,
}


@pytest.mark.filterwarnings("ignore:find_unused_parameters")
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize(("make", "halting"), MODELS.values(), ids=MODELS)
def test_a_wrapped_model_takes_the_steps_of_the_model(make, halting, wrap):
    model = make()
    twin = copy.deepcopy(model)
    losses, gradients, answers = steps(wrap(model), model, halting)
    expected_losses, expected, expected_answers = steps(twin, twin, halting)
    assert losses == pytest.approx(expected_losses, rel=1e-6)
    torch.testing.assert_close(answers, expected_answers)
    for name, gradient in expected.items():
        if gradient is None:  # of the q head, which nothing has taught
            assert gradients[name] is None or not gradients[name].any()
        else:
            torch.testing.assert_close(gradients[name], gradient, msg=name)


def test_a_loss_after_every_loop_is_refused_by_name():
    model = LoopedTransformer(6, 5, hidden_size=8, num_heads=2, num_layers=1, num_loops=3)
    with pytest.raises(TypeError, match="loss after every loop"):
        steps(DistributedDataParallel(model), model, FixedSegments(1))
