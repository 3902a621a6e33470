"""Sums with and without their steps, against sums by hand."""

import torch

from loopgrad.experiments.tasks import IGNORE, LastSum, SumBySteps


def test_only_the_last_token_of_a_last_sum_is_scored():
    task = LastSum(length=5, modulus=3, num_test=30)
    test = task.test_set()
    assert (test.labels[:, :-1] == IGNORE).all()
    assert test.labels[:, -1].tolist() == [sum(row) % 3 for row in test.inputs.tolist()]
    wrong = test.labels.clone()
    wrong[0, -1] = (wrong[0, -1] + 1) % 3
    assert task.is_solved(test.inputs, wrong).tolist() == [False] + [True] * 29


def test_steps_follow_the_mark_and_are_asked_for_one_ahead():
    task = SumBySteps(length=5, modulus=3, num_test=30)
    test = task.test_set()
    for inputs, labels in zip(test.inputs.tolist(), test.labels.tolist(), strict=True):
        values, mark, shown = inputs[:5], inputs[5], inputs[6:]
        steps = [sum(values[: i + 1]) % 3 for i in range(5)]
        assert mark == 3 and shown == steps[:-1] and labels == [IGNORE] * 5 + steps


def greedy(task, answer_next, values):
    """What a causal model says by itself from the mark on."""
    said: list[int] = []
    for _ in range(task.length):
        said.append(answer_next([*values, task.modulus, *said]))
    return said


def test_a_sample_is_exact_where_greedy_decoding_says_all_steps():
    """Of a causal predictor that errs on some prefixes."""
    task = SumBySteps(length=4, modulus=3, num_test=40)

    def answer_next(prefix):
        values, said = prefix[:4], prefix[5:]
        right = sum(values[: len(said) + 1]) % 3
        return (right + (hash(tuple(prefix)) % 7 == 0)) % 3

    test = task.test_set()
    taught = torch.tensor(
        [[answer_next(row[: i + 1]) if i >= 4 else 0 for i in range(8)] for row in test.inputs.tolist()]
    )
    alone = [
        greedy(task, answer_next, row[:4]) == label[4:]
        for row, label in zip(test.inputs.tolist(), test.labels.tolist(), strict=True)
    ]
    assert task.is_solved(test.inputs, taught).tolist() == alone and 0 < sum(alone) < len(alone)
