"""Binomial schedules against a dynamic program, and against what really runs and is really held."""

import sys
import weakref

import pytest
import torch
from cells import build
from problems import leaves_of, loop, loss_of

from loopgrad.gradients import CheckpointedBPTT, Stationary
from loopgrad.gradients.schedule import advances, binomial, evaluations


def fewest_advances(num_blocks, num_snapshots):
    """A(l, c): A(1, c) = 0, A(l, 0) = l (l - 1) / 2, A(l, c) = min_k k + A(l - k, c - 1) + A(k, c)."""
    table = {(length, 0): length * (length - 1) // 2 for length in range(1, num_blocks + 1)}
    for c in range(1, num_snapshots + 1):
        for length in range(1, num_blocks + 1):
            table[length, c] = min(
                (k + table[length - k, c - 1] + table[k, c] for k in range(1, length)),
                default=0,
            )
    return table


def test_the_closed_form_equals_the_dynamic_program():
    for (length, c), expected in fewest_advances(70, 12).items():
        assert advances(length, c) == expected, (length, c)


def evaluations_by_hook(estimator, num_steps):
    problem, seen = build("affine"), []
    problem.cell.register_forward_hook(lambda *_: seen.append(1))
    rollout = estimator(problem.cell, problem.state, problem.inputs, num_steps)
    loss_of(rollout.state).backward()
    assert rollout.stats.cell_evaluations == len(seen)
    return len(seen)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 16, 33, 50])
@pytest.mark.parametrize("c", [0, 1, 2, 3, 5, 8, 60])
def test_evaluations_are_the_optimum(num_steps, c):
    optimum = fewest_advances(num_steps, c)[num_steps, c] + 1 + num_steps
    assert evaluations_by_hook(CheckpointedBPTT("binomial", num_snapshots=c), num_steps) == optimum


def run_by_hand(schedule):
    """Count evaluations, and the most states held beside z_0 and the one that the next block starts from."""
    blocks = len(schedule.bounds) - 1
    count, most, held = 0, 0, [0, *schedule.places(0, blocks, schedule.snapshots)]
    count += schedule.bounds[-1]
    for block in reversed(range(blocks)):
        if held[-1] < block:
            count += schedule.bounds[block] - schedule.bounds[held[-1]]
            held += schedule.places(held[-1], block + 1, schedule.snapshots - len(held) + 1)
        most = max(most, len(held) - 2)
        assert held.pop() == block
        count += schedule.bounds[block + 1] - schedule.bounds[block]
    return count, most


@pytest.mark.parametrize("num_steps", [1, 5, 17, 64, 100])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 30, 200])
@pytest.mark.parametrize("c", [0, 1, 2, 6, 150])
def test_blocks_of_updates_take_the_evaluations_that_are_announced(num_steps, length, c):
    schedule = binomial(num_steps, c, length)
    count, most = run_by_hand(schedule)
    assert count == schedule.evaluations == evaluations(num_steps, c, length)
    assert most <= c
    assert schedule.bounds[0] == 0 and schedule.bounds[-1] == num_steps


@pytest.mark.parametrize("c", [0, 1, 3, 6])
def test_at_most_c_states_are_alive_beside_the_first_one(c):
    """Counts the states that live whenever an update begins, less z_0, the update's own argument and the last state."""
    alive, counts = _Storages(), []
    weight = torch.nn.Parameter(torch.tensor(0.9))

    def update(z, x):
        counts.append(len(alive.addresses() - {z.untyped_storage().data_ptr()}))
        new = torch.tanh(weight * z)
        alive.add(new.untyped_storage())
        return new

    cell = Stationary(update, parameters=[weight])
    state = CheckpointedBPTT("binomial", num_snapshots=c)(cell, torch.ones(3), None, 40).state
    loss = state.sum()
    del state
    counts.clear()
    loss.backward()
    assert max(counts) == c


class _Storages:
    """Storages by weak reference."""

    def __init__(self):
        self.references = []

    def add(self, storage):
        self.references.append(weakref.ref(storage))

    def addresses(self):
        return {storage.data_ptr() for reference in self.references if (storage := reference()) is not None}


def test_backward_twice_with_retained_graph_gives_the_same_gradients():
    problem = build("dropout", torch.float32)
    state = CheckpointedBPTT("binomial", num_snapshots=2)(problem.cell, problem.state, problem.inputs, 20).state
    loss, sources = loss_of(state), list(problem.sources().values())
    first = torch.autograd.grad(loss, sources, retain_graph=True)
    second = torch.autograd.grad(loss, sources)
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, sources)


def test_buffers_advance_once_whatever_runs_again():
    problem, witness = build("buffers"), build("buffers")
    last = CheckpointedBPTT("binomial", num_snapshots=1)(problem.cell, problem.state, problem.inputs, 12).state
    loss_of(last).backward()
    loss_of(loop(witness, 12)).backward()
    assert all(map(torch.equal, problem.cell.buffers(), witness.cell.buffers()))
    assert torch.equal(leaves_of(problem.state)[0].grad, leaves_of(witness.state)[0].grad)


@pytest.mark.parametrize("c", [0, 1, 2, 8, 100, 2000])
def test_planning_takes_a_few_calls_per_update(c):
    calls = []
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, argument: calls.append(1) if event in ("call", "c_call") else None)
    try:
        run_by_hand(binomial(1024, c))
    finally:
        sys.setprofile(before)
    assert len(calls) < 20 * 1024  # a table of T^2 entries would take half a million at the least


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "binomial"}, "give num_snapshots"),
        ({"schedule": "binomial", "num_snapshots": -1}, "at least 0"),
        ({"schedule": "binomial", "num_snapshots": True}, "an int"),
        ({"num_snapshots": 3}, 'schedule="binomial"'),
        ({"schedule": 4, "num_snapshots": 3}, 'schedule="binomial"'),
        ({"schedule": "binary"}, '"binomial"'),
        ({"offload": "disk"}, '"cpu"'),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CheckpointedBPTT(**arguments)
