"""Copy and repeat-copy against answers written out token by token."""

import pytest
import torch

from loopgrad.experiments.tasks import IGNORE, Copy, RepeatCopy


def test_a_copy_is_asked_for_after_the_mark_and_is_not_to_be_seen_then():
    task = Copy(length=6, num_values=5, num_test=20)
    for batch in (task.train_batch(0, 0, 32), task.test_set()):
        for x, y in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
            assert x[6:] == [5] + 6 * [6] and max(x[:6]) < 5
            assert y == 7 * [IGNORE] + x[:6]
    assert task.spec.symbols == ("0", "1", "2", "3", "4", "|", ".") and task.spec.seq_len == 13


def test_a_repeated_copy_is_said_as_often_as_the_mark_tells_and_then_ended():
    task = RepeatCopy(length=3, repeats=4, num_values=5, num_test=20)
    seen = set()
    for batch in (task.train_batch(0, 0, 64), task.test_set()):
        for x, y in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
            count = {5: 1, 6: 2, 7: 3, 8: 4}[x[3]]
            seen.add(count)
            answer = count * x[:3] + [9]
            assert x[4:] == 13 * [10] and max(x[:3]) < 5
            assert y == 4 * [IGNORE] + answer + (13 - len(answer)) * [IGNORE]
    assert seen == {1, 2, 3, 4}
    assert task.spec.symbols[5:] == ("x1", "x2", "x3", "x4", "end", ".") and task.spec.seq_len == 17


@pytest.mark.parametrize("task", [Copy(4, 3, num_test=30), RepeatCopy(4, 2, 3, num_test=30)], ids=["copy", "repeat"])
def test_no_held_out_sequence_is_shown_with_whatever_mark(task):
    held_out = set(map(tuple, task.test_set().inputs[:, :4].tolist()))
    shown = {tuple(x) for step in range(40) for x in task.train_batch(0, step, 32).inputs[:, :4].tolist()}
    assert len(held_out) == 30 and shown.isdisjoint(held_out) and len(shown) == 3**4 - 30


@pytest.mark.parametrize("task", [Copy(4, 3), RepeatCopy(4, 2, 3)], ids=["copy", "repeat"])
def test_what_is_said_where_no_answer_is_due_does_not_count(task):
    batch = task.test_set()
    answers = batch.labels.where(batch.labels != IGNORE, 1)
    assert task.is_solved(batch.inputs, answers).all()
    answers[:, 5] = (answers[:, 5] + 1) % 3
    assert not task.is_solved(batch.inputs, answers).any()


def test_repeats_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"RepeatCopy\(repeats=...\) must be at least 1, got 0"):
        RepeatCopy(repeats=0)
    assert torch.equal(RepeatCopy(repeats=1).test_set().inputs[:, 5], torch.full((512,), 8))
