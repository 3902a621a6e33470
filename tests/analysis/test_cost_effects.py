"""cost.measure and interleaved leave nothing behind, and refuse what they cannot measure."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from torch import nn

from loopgrad.analysis import interleaved, measure, median_ratio


def test_gradients_are_left_as_they_were_found():
    used, unused = torch.ones(3, requires_grad=True), nn.Linear(2, 2)
    kept = used.grad = torch.full((3,), 7.0)
    other = unused.weight.grad = torch.full((2, 2), 5.0)
    measure(lambda: used.square().sum(), exclude=unused, repeats=2)
    assert used.grad is kept and torch.equal(kept, torch.full((3,), 7.0))
    assert unused.weight.grad is other and unused.bias.grad is None


def test_gradients_are_put_back_when_the_run_fails():
    weight = torch.ones(3, requires_grad=True)
    kept = weight.grad = torch.full((3,), 7.0)
    calls = []

    def run():
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("third call")
        return weight.sum()

    with pytest.raises(RuntimeError, match="third call"):
        measure(run)
    assert weight.grad is kept


def test_every_pass_draws_the_same_numbers_and_the_generator_is_put_back():
    weight, seen = torch.ones(4, requires_grad=True), []

    def run():
        seen.append(torch.rand(4))
        return (weight * seen[-1]).sum()

    torch.manual_seed(3)
    before = torch.get_rng_state()
    measure(run, repeats=2, warmup=1)
    interleaved({"a": run, "b": run}, repeats=1)
    assert torch.equal(before, torch.get_rng_state())
    assert len(seen) == (3 + 1 + 2) + 2 * (1 + 2 * (1 + 1))
    assert all(torch.equal(numbers, seen[0]) for numbers in seen)


def test_no_hook_stays_on_the_cell():
    cell = nn.Linear(2, 2)
    measure(lambda: cell(torch.ones(1, 2)).sum(), cell=cell, repeats=0)
    assert not cell._forward_hooks and not cell._forward_pre_hooks


def test_seconds_is_nan_without_repeats_and_a_record_is_json():
    weight = torch.ones(2, requires_grad=True)
    assert math.isnan(measure(lambda: weight.sum(), repeats=0).seconds)
    cost = measure(lambda: weight.sum(), repeats=3)
    assert cost.seconds > 0
    assert json.loads(json.dumps(asdict(cost))) == asdict(cost)


def test_a_loss_that_is_a_leaf_itself_is_measured():
    weight = torch.ones((), requires_grad=True)
    cost = measure(lambda: weight, repeats=1)
    assert (cost.saved_bytes, cost.flops, weight.grad) == (0, 0, None)


@pytest.mark.parametrize(
    ("run", "error", "text"),
    [
        (lambda: 1.0, TypeError, "run must return the loss"),
        (lambda: torch.ones(()), ValueError, "requires_grad=False"),
        (lambda: torch.ones(2, requires_grad=True) * 2, ValueError, "shape"),
    ],
)
def test_a_run_without_a_scalar_loss_is_refused(run, error, text):
    with pytest.raises(error, match=text):
        measure(run)


def test_what_cannot_be_excluded_is_refused():
    weight = torch.ones((), requires_grad=True)
    with pytest.raises(TypeError, match="exclude takes tensors, modules"):
        measure(lambda: weight * 2, exclude=[object()])
    with pytest.raises(ValueError, match="repeats must be at least 0"):
        measure(lambda: weight * 2, repeats=-1)


def test_runs_are_interleaved_in_the_order_given_and_backward_is_included():
    order, backward = [], []
    weight = torch.ones(2, requires_grad=True)

    def differentiated():
        order.append("a")
        loss = (weight * 1.0).sum()
        loss.register_hook(lambda grad: backward.append(1))
        return loss

    def plain():
        order.append("b")

    times = interleaved({"a": differentiated, "b": plain}, repeats=3, warmup=1)
    assert "".join(order) == "ab" + "aabb" * 4  # once to find the leaves; four rounds, each call after an untimed one
    assert len(backward) == 8
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}
    assert weight.grad is None


def test_median_ratio_is_the_median_of_ratios_not_the_ratio_of_medians():
    assert median_ratio([2.0, 30.0, 3.0], [1.0, 10.0, 3.0]) == 2.0
    with pytest.raises(ValueError, match="same rounds"):
        median_ratio([1.0], [1.0, 2.0])


@pytest.mark.slow
def test_a_deep_graph_can_be_measured():
    """Nodes that Python has seen are freed recursively by torch 2.13, which would end the process here."""
    gain = torch.ones(3, requires_grad=True)

    def run():
        z = torch.zeros(3)
        for _ in range(20_000):
            z = torch.tanh(gain * z)
        return z.sum()

    assert measure(run, repeats=0, warmup=0).saved_bytes > 0
    assert interleaved({"deep": run}, repeats=1, warmup=0)["deep"][0] > 0
