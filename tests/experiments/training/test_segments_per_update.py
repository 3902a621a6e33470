"""Several segments between updates of the weights: the mean of their losses, as a loop by hand has it."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from loopgrad.experiments.tasks import Sudoku
from loopgrad.experiments.trainer import Trainer
from loopgrad.experiments.training import probe
from loopgrad.experiments.training.loop import begin, train
from loopgrad.experiments.training.seeds import seed_for
from loopgrad.gradients import BPTT
from loopgrad.models import TRM, FixedSegments, supervision
from loopgrad.models.losses import stablemax_cross_entropy

TASK = Sudoku(4, num_train=16, num_test=4)


def model():
    spec = TASK.spec
    return TRM(spec.vocab_size, spec.seq_len, hidden_size=8, num_heads=2, H_cycles=1, L_cycles=1, mixer="mlp").double()


def trainer(**changed):
    return Trainer(FixedSegments(3), train_steps=4, batch_size=4, warmup_steps=0, grad_clip=0.0, **changed)


def by_hand(segments: int, steps: int):
    """Weights after so many updates, each of the mean loss of some segments, without our loop."""
    own, settings = model().train(), trainer()
    first = TASK.train_batch(seed_for("data", 0), 0, 4)
    carry, optimiser = supervision.initial_carry(own, first), torch.optim.AdamW(own.parameters(), 1e-3, (0.9, 0.95))
    optimiser.param_groups[0]["weight_decay"] = settings.weight_decay
    for step in range(steps):
        losses = []
        for number in range(step * segments, (step + 1) * segments):
            batch = TASK.train_batch(seed_for("data", 0), number, 4)
            found = supervision.run_segment(
                own, carry, batch, BPTT(), settings.halting, cross_entropy=stablemax_cross_entropy
            )
            carry = found.carry
            losses.append(found.loss)
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        optimiser.step()
    return [p.detach() for p in own.parameters()]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("segments", [1, 2, 3])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_an_update_is_of_the_mean_loss_of_its_segments(segments, micro_batches):
    settings = trainer(segments_per_update=segments, micro_batches=micro_batches)
    run = begin(settings, TASK, model(), seed=0)
    list(train(run, settings, TASK, BPTT(), seed=0))
    for own, wanted in zip(run.model.parameters(), by_hand(segments, 4), strict=True):
        torch.testing.assert_close(own.detach(), wanted, rtol=1e-9, atol=1e-12)
    assert int(run.carry.segment.max()) == (4 * segments - 1) % 3 + 1


def test_what_is_logged_is_of_all_segments():
    settings = trainer(segments_per_update=3)
    run = begin(settings, TASK, model(), seed=0)
    entries = list(train(run, settings, TASK, BPTT(), seed=0))
    assert [entry["finished"] for entry in entries] == [4, 4, 4, 4]  # each row ends once in three segments


@pytest.mark.parametrize("segments", [1, 3])
def test_what_an_update_costs_is_what_all_of_its_segments_cost(segments):
    settings = trainer(segments_per_update=segments)
    found = probe.cost(probe.start(model().float(), settings, TASK.train_batch(0, 0, 4)), BPTT())
    with FlopCounterMode(display=False) as counter:
        by_hand(segments, 1)
    assert found["flops"] == counter.get_total_flops() and found["vjps"] == segments * model().num_steps
    assert (
        found["saved_bytes"]
        == probe.cost(probe.start(model().float(), trainer(), TASK.test_set()), BPTT())["saved_bytes"]
    )


def test_none_is_refused():
    with pytest.raises(ValueError, match="segments_per_update=0 must be at least 1"):
        trainer(segments_per_update=0)
