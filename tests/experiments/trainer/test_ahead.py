"""What is drawn ahead is what would have been drawn: once, in order, on a thread, with its errors in their place."""

import threading

import pytest
from small_runs import TASK, model, trainer

from loopgrad.experiments.trainer.ahead import ahead
from loopgrad.experiments.training.loop import begin, train
from loopgrad.gradients import BPTT


def test_each_step_is_drawn_once_and_all_but_the_first_on_the_thread():
    calls = []

    def draw(step):
        calls.append((step, threading.current_thread().name))
        return step * step

    with ahead(draw, steps=5) as drawn:
        assert [drawn(step) for step in range(1, 5)] == [1, 4, 9, 16]
    assert [step for step, _ in calls] == [1, 2, 3, 4]
    assert calls[0][1] == threading.current_thread().name and all("draws" in name for _, name in calls[1:])
    assert not [it for it in threading.enumerate() if it.name.startswith("draws")]


def test_an_error_comes_with_its_step_and_ends_the_thread():
    def draw(step):
        if step == 2:
            raise ValueError("step 2")
        return step

    with pytest.raises(ValueError, match="step 2"), ahead(draw, steps=9) as drawn:
        assert [drawn(0), drawn(1)] == [0, 1]
        drawn(2)
    assert not [it for it in threading.enumerate() if it.name.startswith("draws")]


def test_a_step_that_was_not_foreseen_is_drawn():
    with ahead(lambda step: -step, steps=9) as drawn:
        assert [drawn(3), drawn(7), drawn(0)] == [-3, -7, 0]


def test_training_is_bit_identical_and_a_run_that_stops_leaves_no_thread():
    def losses(**values):
        it = trainer(**values)
        return [entry["loss"] for entry in train(begin(it, TASK, model(), 0), it, TASK, BPTT(), 0)]

    assert losses(prefetch=True) == losses()
    it = trainer(prefetch=True)
    steps = train(begin(it, TASK, model(), 0), it, TASK, BPTT(), 0)
    next(steps)
    steps.close()
    assert not [it for it in threading.enumerate() if it.name.startswith("draws")]
