"""Residual and verdicts in the log beside the recursion followed by hand; what is recorded of a few samples."""

import numpy as np
import pytest
import torch
from small_runs import TASK, model, trainer

from loopgrad.analysis import classify, record
from loopgrad.analysis.verdicts import LABELS
from loopgrad.experiments.tasks import RollingSum
from loopgrad.experiments.training.answers import followed, segments_of
from loopgrad.experiments.training.loop import begin, train
from loopgrad.experiments.training.walk import settling, walk
from loopgrad.gradients import TruncatedBPTT
from loopgrad.models import GRU, FixedSegments, supervision


def states_at_ends_of_cycles(net, batch, segments):
    state, found = net.initial_state(*batch.inputs.shape), []
    x = net.encode(batch.inputs)
    for _ in range(segments):
        for step in range(net.num_steps):
            state = net.cell(state, x, step)
            if (step + 1) % net.cell.period == 0:
                found.append(torch.cat([z.flatten(1) for z in state.values()], 1).double())
    return torch.stack(found)


@torch.no_grad()
def test_the_residual_is_that_of_the_last_cycle_and_shares_are_those_of_the_verdicts():
    net, rules = model().eval(), trainer(halting=FixedSegments(6), verdict_samples=9)
    batch = TASK.test_set()[:9]
    ends = states_at_ends_of_cycles(net, batch, 6)
    by_hand = (ends[-1] - ends[-2]).norm(dim=-1) / ends[-1].norm(dim=-1)
    told = settling(net, rules, TASK.test_set())
    found = walk(net, rules, batch)
    assert found.residuals.shape == (len(ends), 9)
    moved = (ends[-1] - ends[-2]).norm(dim=-1).numpy()
    scale = np.hypot.reduce([found.trace.scale[name] for name in found.trace.streams])
    assert told["residual"] == pytest.approx(float(np.median(moved / scale)), rel=1e-4)
    assert told["residual"] == pytest.approx(float(by_hand.median()), rel=0.3)  # the scale is that of the tail
    x = net.encode(batch.inputs)
    labels = classify(record(net.cell, net.initial_state(9, 6), x, 6 * net.num_steps, lags=16))["joint"].label
    shares = {f"verdict@{label.replace(' ', '_')}": float((labels == label).mean()) for label in LABELS}
    assert told == {"residual": told["residual"], **shares} and sum(shares.values()) == pytest.approx(1)


def test_nothing_is_told_where_nothing_is_asked_or_nothing_settles():
    assert settling(model(), trainer(verdict_samples=0), TASK.test_set()) == {}
    reader = GRU(TASK.spec.vocab_size, TASK.spec.seq_len, hidden_size=4)
    assert reader.input_per_update and settling(reader, trainer(halting=FixedSegments(1)), TASK.test_set()) == {}
    with pytest.raises(ValueError, match="verdict_samples=-1"):
        trainer(verdict_samples=-1)


def test_evaluations_are_logged_with_it_and_steps_between_are_not_nor_is_training_changed():
    logs = []
    for samples in (0, 4):
        rules = trainer(verdict_samples=samples)
        logs.append(list(train(begin(rules, TASK, model(), 0), rules, TASK, TruncatedBPTT(1), 0)))
    assert [entry["loss"] for entry in logs[0]] == [entry["loss"] for entry in logs[1]]
    assert [entry["step"] for entry in logs[1] if "test_residual" in entry] == [3, 6]
    assert all("test_verdict@too_short" in entry for entry in logs[1] if "test_residual" in entry)
    assert not any("residual" in name or "verdict" in name for entry in logs[0] for name in entry)


def test_what_is_recorded_of_samples_is_what_they_were_answered():
    net, rules = model().eval(), trainer(halting=FixedSegments(3))
    batch = TASK.test_set()[:2]
    segments, seen = segments_of(net, rules, TASK, batch, 3), walk(net, rules, batch)
    found = followed(TASK, batch, [0, 1], segments, seen.residuals, {"training": seen.verdicts})
    for row, own in enumerate(found):
        lines = None
        for number, frame in enumerate(own["frames"], 1):
            answer = supervision.predict(net, batch.inputs, None, number).logits.argmax(-1)[row]
            lines = frame.get("lines", lines)
            assert lines == TASK.render(batch.inputs[row], answer).splitlines()
            assert frame["wrong"] == int(((answer != batch.labels[row]) & (batch.labels[row] >= 0)).sum())
            assert frame["halts"] == (number == 3) and frame["solved"] == (frame["wrong"] == 0)
        assert own["sample"] == row and own["scored"] == int((batch.labels[row] >= 0).sum())
        assert own["residuals"] == pytest.approx(seen.residuals[:, row].tolist())
        assert own["verdicts"]["training"]["joint"] == LABELS.index(seen.verdicts["joint"].label[row])


def test_an_answer_that_stays_is_held_once():
    class Constant(RollingSum):
        def render(self, inputs, answer):
            return "the same"

    net, task = model(), Constant(length=6, modulus=3, num_test=2)
    batch = task.test_set()
    (first, _) = followed(task, batch, [0, 1], segments_of(net, trainer(), task, batch, 2))
    assert [frame.get("lines") for frame in first["frames"]] == [["the same"], None]
    assert "residuals" not in first and "verdicts" not in first
