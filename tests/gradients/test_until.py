"""Samples that an event ends: each is as it would be alone, and the batch runs no longer than its longest."""

from math import ceil

import pytest
import torch
from problems import leaves_of
from until_cases import BATCH, CELLS, ESTIMATORS, MOST, build

from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    ForwardMode,
    TruncatedBPTT,
    Until,
)

PLAIN = [(cell, "plain", name) for cell in CELLS for name in ESTIMATORS if name not in ("reversible", "anchors")]
COUPLED = [
    (cell, how, name)
    for how in ("damped", "leapfrog")
    for cell in ("gru", "two_streams")
    for name in ("bptt", "sqrt", "reversible", "anchors")
]


def by_hand(ended):
    """The number of updates of every sample, last states, losses, and answers padded with zeros."""
    rows = [ended.row(i) for i in range(BATCH)]
    taken = tuple(count for count, *_ in rows)
    leaves = zip(*(leaves_of(state) for _, state, *_ in rows), strict=True)
    states = [torch.cat(parts) if parts[0].dim() else torch.stack(parts).amax() for parts in leaves]
    padded = [torch.cat([*a, *[torch.zeros_like(a[0])] * (MOST - len(a))]) for *_, a in rows]
    return taken, states, torch.cat([last for _, _, last, _ in rows]), torch.stack(padded, 1)


def quick(cell, coupling, name):
    return (cell, coupling) == ("gru", "plain") or (cell, name) == ("two_streams", "reversible") or name == "bptt"


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize(
    ("cell", "coupling", "name"),
    [case if quick(*case) else pytest.param(*case, marks=pytest.mark.slow) for case in (*PLAIN, *COUPLED)],
)
def test_each_sample_is_as_it_would_be_alone(cell, coupling, name, every):
    ended = build(cell, coupling)
    taken, states, _, answers = by_hand(ended)
    assert len(set(taken)) > 2 and max(taken) < MOST, "or it would show nothing"
    weights = torch.linspace(0.5, 1.5, MOST).double()[:, None]
    loss = (weights * answers).sum() + sum(leaf.square().sum() for leaf in states)
    expected = torch.autograd.grad(loss, ended.sources())
    ended.counter.calls = 0
    rollout = ended.run(ESTIMATORS[name], save="all", until=Until(ended.event, every))
    assert rollout.stats.steps == taken
    period = ended.counter.period
    assert rollout.stats.vjps == max(taken) + period * (name == "budget"), "one per update of the longest"
    for mine, theirs in zip(leaves_of(rollout.state), states, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(rollout.outputs, answers, rtol=1e-12, atol=1e-12)
    mine = (weights * rollout.outputs).sum() + sum(leaf.square().sum() for leaf in leaves_of(rollout.state))
    for got, wanted in zip(torch.autograd.grad(mine, ended.sources()), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    run = min(MOST, every * ceil(max(taken) / every))
    once = {"bptt": 0, "whole": max(taken)}.get(name, 2 * max(taken))  # what the estimator itself costs
    if name not in ("budget", "binomial"):
        assert rollout.stats.cell_evaluations == (run if name == "bptt" else run + once)
    if coupling != "damped":  # which goes through a whole cycle in an update
        assert ended.counter.calls == rollout.stats.cell_evaluations


def test_what_is_summed_and_the_answer_to_the_last_state_are_those_of_each_sample():
    ended = build()
    taken, _, last, answers = by_hand(ended)
    for name in ("bptt", "sqrt"):
        found = ended.run(ESTIMATORS[name], save="sum", until=Until(ended.event, 5)).outputs
        torch.testing.assert_close(found, answers.sum(0), rtol=1e-12, atol=1e-12)
        found = ended.run(ESTIMATORS[name], until=Until(ended.event, 5)).outputs
        torch.testing.assert_close(found, last, rtol=1e-12, atol=1e-12)
    states = ended.run(BPTT(), save="all", until=Until(ended.event, 5)).outputs
    assert (states[max(taken) :] == 0).all(), "of updates that were run for nothing there is no answer"


@pytest.mark.parametrize("save", [3, [1, 20], "sum"], ids=str)
def test_lengths_and_chosen_updates_and_a_start_compose(save):
    """The smaller number counts; the event is told the number of the update, as the cell is."""
    ended, told = build("two_streams"), []
    limits = [3, 24, 0, 24, 1]

    def event(state, inputs, x, step):
        told.append(step)
        return ended.event(state, inputs, x, step - 6)

    given = {"save": [s + 6 for s in save] if isinstance(save, list) else save, "start": 6}
    found = ended.run(BPTT(), until=Until(event, 4), lengths=limits, **given)
    assert told == list(range(6, 6 + found.stats.cell_evaluations))
    free = ended.run(BPTT(), until=Until(event), start=6).stats.steps
    assert found.stats.steps == tuple(map(min, free, limits)) != free
    expected = ended.run(BPTT(), lengths=found.stats.steps, **given)
    twice = ended.run(CheckpointedBPTT(), until=Until(event, 4), lengths=limits, **given)
    for rollout in (found, twice):
        assert torch.equal(rollout.outputs, expected.outputs)
        assert all(map(torch.equal, leaves_of(rollout.state), leaves_of(expected.state)))


@pytest.mark.parametrize(
    "estimator", [CheckpointedBPTT(), TruncatedBPTT(2), ForwardMode()], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("why", ["no grad", "nothing requires it"])
def test_where_no_gradient_is_needed_one_pass_is_all(estimator, why):
    ended = build()
    expected = ended.run(BPTT(), until=Until(ended.event, 5), save="sum")
    for tensor in ended.sources() if why != "no grad" else ():
        tensor.requires_grad_(False)
    ended.counter.calls = 0
    with torch.set_grad_enabled(why != "no grad"):
        found = ended.run(estimator, until=Until(ended.event, 5), save="sum")
    assert torch.equal(found.state, expected.state) and torch.equal(found.outputs, expected.outputs)
    assert found.stats.steps == expected.stats.steps
    assert found.stats.cell_evaluations == ended.counter.calls == expected.stats.cell_evaluations
