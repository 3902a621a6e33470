"""Rolling sums and sorting against sums and sorts written out, and what the endless stream leaves out."""

import itertools

import pytest
import torch

from loopgrad.experiments.tasks import RollingSum, Sorting


@pytest.mark.parametrize("modulus", [2, 5, 13])
def test_rolling_sums_equal_sums_written_out(modulus):
    batch = RollingSum(length=11, modulus=modulus, num_test=40).train_batch(0, 0, 32)
    for x, y in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
        assert y == [sum(x[: i + 1]) % modulus for i in range(len(x))]


def test_sorted_labels_equal_python_sorting():
    batch = Sorting(length=9, num_values=7, num_test=40).train_batch(0, 0, 32)
    assert [sorted(x) for x in batch.inputs.tolist()] == batch.labels.tolist()


def test_an_ordered_answer_with_other_tokens_is_not_sorted():
    task = Sorting(length=3, num_values=4)
    inputs = torch.tensor([[2, 0, 1]] * 3)
    answers = torch.tensor([[0, 1, 2], [0, 1, 3], [1, 0, 2]])
    assert task.is_solved(inputs, answers).tolist() == [True, False, False]


@pytest.mark.parametrize(
    "task", [RollingSum(length=3, modulus=2, num_test=4), Sorting(length=3, num_values=2, num_test=4)]
)
def test_training_draws_exactly_the_sequences_that_are_not_held_out(task):
    everything = set(itertools.product(range(2), repeat=3))
    held_out = set(map(tuple, task.test_set().inputs.tolist()))
    assert len(held_out) == 4
    drawn = [tuple(x) for step in range(20) for x in task.train_batch(0, step, 40).inputs.tolist()]
    assert set(drawn) == everything - held_out
    # uniform over the four that remain: 800 draws, 200 each, standard deviation 12
    assert all(abs(drawn.count(x) - 200) < 60 for x in set(drawn))


def test_holding_out_more_than_half_of_all_sequences_is_refused():
    with pytest.raises(ValueError, match=r"num_test=.*5 of 2\*\*3 = 8"):
        RollingSum(length=3, modulus=2, num_test=5)


def test_short_sequences_hold_out_a_quarter_of_all_and_long_ones_512():
    assert len(RollingSum(length=4, modulus=3).test_set()) == 3**4 // 4
    assert len(Sorting(length=1, num_values=2).test_set()) == 1
    assert len(Sorting().test_set()) == len(RollingSum(length=400, modulus=7).test_set()) == 512


def test_data_seed_decides_the_test_set_and_the_training_seed_does_not():
    def tests(task):
        return task.test_set().inputs.tolist()

    task = RollingSum(length=12, num_test=6)
    before = tests(task)
    task.train_batch(123, 0, 4)
    assert tests(task) == before == tests(RollingSum(length=12, num_test=6))
    assert tests(RollingSum(length=12, num_test=6, data_seed=1)) != before


def test_rendering_aligns_tokens_of_different_width():
    task = RollingSum(length=3, modulus=12)
    assert task.render(torch.tensor([11, 2, 0]), torch.tensor([11, 1, 1])).splitlines() == [
        "tokens       11  2  0",
        "sum mod 12   11  1  1",
    ]
