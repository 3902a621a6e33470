"""Synthetic gradients in training: beside a loop by hand, from a checkpoint, and saying nothing."""

import pytest
import torch
from small_runs import TASK, model, trainer

from loopgrad.experiments.conf.own import without_young
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.trainer import SyntheticGradients
from loopgrad.experiments.training import checkpoint
from loopgrad.experiments.training.loop import begin, train
from loopgrad.experiments.training.seeds import seed_for
from loopgrad.gradients import BPTT, CheckpointedBPTT
from loopgrad.models import FixedSegments, QHalt, Synthesiser, supervision

SYNTHETIC = SyntheticGradients(hidden_size=5, learning_rate=0.01)


def timeless(entries, *dropped):
    return [{key: it for key, it in entry.items() if key not in ("seconds", *dropped)} for entry in entries]


def by_hand(segments: int, updates: int):
    """Weights of model and synthesiser after so many updates, each with an optimiser of its own."""
    own = model().double().train()
    synthesiser = Synthesiser.of(own, 3, 5, seed_for("synthesiser", 0)).double()
    first = TASK.train_batch(seed_for("data", 0), 0, 4)
    carry = supervision.initial_carry(own, first)
    optimisers = (
        torch.optim.AdamW(own.parameters(), 1e-3, (0.9, 0.95), weight_decay=0.1),
        torch.optim.Adam(synthesiser.parameters(), 0.01),
    )
    for update in range(updates):
        losses = []
        for number in range(update * segments, (update + 1) * segments):
            batch = TASK.train_batch(seed_for("data", 0), number, 4)
            found = supervision.run_segment(own, carry, batch, BPTT(), FixedSegments(3), synthesiser=synthesiser)
            carry = found.carry
            losses.append(found.loss)
        own.zero_grad()
        synthesiser.zero_grad()
        torch.stack(losses).mean().backward()
        for optimiser in optimisers:
            optimiser.step()
    return own, synthesiser


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("segments", "micro_batches"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_training_is_two_optimisers_on_one_loss(segments, micro_batches):
    it = trainer(
        halting=FixedSegments(3),
        warmup_steps=0,
        grad_clip=0.0,
        synthetic=SYNTHETIC,
        segments_per_update=segments,
        micro_batches=micro_batches,
    )
    run = begin(it, TASK, model().double(), 0)
    list(train(run, it, TASK, CheckpointedBPTT(), 0))
    for mine, other in zip(run.trained, by_hand(segments, 6), strict=True):
        for name, weight in mine.state_dict().items():
            torch.testing.assert_close(weight, other.state_dict()[name], rtol=1e-8, atol=1e-11)
    assert run.synthesiser is not None and run.synthesiser.out is not None and run.synthesiser.out.weight.norm() > 0.1


def test_a_synthesiser_that_does_not_learn_changes_no_bit():
    logs, weights = [], []
    for synthetic in (None, SyntheticGradients(5, learning_rate=0.0)):
        it = trainer(halting=QHalt(3, 0.5), train_steps=8, synthetic=synthetic)
        run = begin(it, TASK, model(), 0)
        logs.append(timeless(train(run, it, TASK, BPTT(), 0), "saved_bytes"))
        weights.append([*run.model.state_dict().values(), *run.average.state_dict().values()])
    assert logs[0] == logs[1]
    assert all(map(torch.equal, *weights))


def test_going_on_from_a_checkpoint_is_bit_identical(tmp_path):
    it = trainer(halting=FixedSegments(3), synthetic=SYNTHETIC)
    whole_run, path = begin(it, TASK, model(), 0), tmp_path / "c.pt"
    whole = timeless(train(whole_run, it, TASK, BPTT(), 0))
    cut = begin(it, TASK, model(), 0)
    steps = train(cut, it, TASK, BPTT(), 0)
    begun = timeless(next(steps) for _ in range(4))
    checkpoint.save(path, cut, BPTT(), {})
    again = begin(it, TASK, model(), 0)
    checkpoint.load(path, again, BPTT(), {})
    assert begun + timeless(train(again, it, TASK, BPTT(), 0)) == whole
    for one, other in zip(whole_run.trained, again.trained, strict=True):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    plain = begin(trainer(halting=FixedSegments(3)), TASK, model(), 0)
    with pytest.raises(ConfigError, match="synthesiser is nothing that belongs there"):
        checkpoint.load(path, plain, BPTT(), {})


def test_none_is_the_configuration_of_before():
    node = {"_target_": "loopgrad.experiments.trainer.Trainer", "beta1": 0.9}
    assert without_young({**node, "synthetic": None}) == node


@pytest.mark.parametrize(
    ("values", "words"), [({"hidden_size": -1}, "hidden_size=-1"), ({"learning_rate": -1.0}, "-1")]
)
def test_what_is_out_of_range_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        SyntheticGradients(**values)
