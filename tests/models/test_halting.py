"""Halting rules by hand-worked tables, and the losses of the q head by their formulas."""

import math
from dataclasses import dataclass

import pytest
import torch

from loopgrad.gradients import BPTT
from loopgrad.models import TRM, FixedSegments, QHalt, QLearning, ResidualHalt, run_segment
from loopgrad.models.halting import continue_target
from loopgrad.models.supervision import Carry, initial_carry


@dataclass(frozen=True)
class Batch:
    inputs: torch.Tensor
    labels: torch.Tensor
    puzzle_ids: torch.Tensor


def test_fixed_segments_stop_at_the_number_whatever_q_says():
    segment = torch.tensor([1, 2, 3, 4])
    halts = FixedSegments(3).halts(segment, torch.full((4,), 9.0), torch.zeros(4))
    assert halts.tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("segment", "q_halt", "q_continue", "trm", "hrm"),
    [
        (1, 0.5, 1.0, True, False),
        (1, 0.0, -1.0, False, True),
        (1, -0.5, -1.0, False, True),
        (1, -0.5, -0.5, False, False),
        (3, 0.1, 0.0, True, True),
        (4, -9.0, 9.0, True, True),  # the last segment
        (5, -9.0, 9.0, True, True),
    ],
)
def test_rules_without_exploration(segment, q_halt, q_continue, trm, hrm):
    arguments = torch.tensor([segment]), torch.tensor([q_halt]), torch.tensor([q_continue])
    assert QHalt(max_segments=4, exploration=0).halts(*arguments).item() is trm
    assert QLearning(max_segments=4, exploration=0).halts(*arguments).item() is hrm


@pytest.mark.parametrize("rule", [QHalt, QLearning])
def test_exploration_makes_samples_stay_for_two_to_max_segments(rule):
    halting = rule(max_segments=4, exploration=0.3)
    generator, size = torch.Generator().manual_seed(0), 40_000
    yes, no = torch.ones(size), torch.zeros(size)
    # stays where it explores (0.3) and the drawn minimum, one of 2, 3, 4, is above the segment
    for segment, stays in ((1, 0.3), (2, 0.3 * 2 / 3), (3, 0.3 / 3), (4, 0.0)):
        halts = halting.halts(torch.full((size,), segment), yes, no, generator)
        share = 1 - halts.float().mean().item()
        assert abs(share - stays) <= 4 * math.sqrt(stays / size)  # four standard errors
    never = halting.halts(torch.ones(size, dtype=torch.int64), no - 1, no, generator)
    assert not never.any()  # exploration never makes a sample stop earlier


def test_exploration_needs_a_generator_and_draws_from_it_alone():
    arguments = torch.ones(8, dtype=torch.int64), torch.ones(8), torch.zeros(8)
    with pytest.raises(ValueError, match="pass generator="):
        QHalt().halts(*arguments)
    before = torch.get_rng_state()
    halting = QHalt(exploration=0.5)
    first, again = (halting.halts(*arguments, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and first.any() and not first.all()
    assert torch.equal(before, torch.get_rng_state())
    assert QHalt(max_segments=1).halts(*arguments).all()


def bce(logit, target):
    p = 1 / (1 + math.exp(-logit))
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


def test_losses_are_half_binary_cross_entropies():
    q_halt, q_continue = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])
    solved, target = torch.tensor([True, True]), torch.tensor([0.25, 0.75])
    halt = 0.5 * (bce(2, 1) + bce(-1, 1)) / 2
    both = halt + 0.5 * (bce(0.5, 0.25) + bce(-3, 0.75)) / 2
    assert QHalt().q_loss(q_halt, q_continue, solved, None).item() == pytest.approx(halt, rel=1e-6)
    assert QLearning().q_loss(q_halt, q_continue, solved, target).item() == pytest.approx(both, rel=1e-6)
    assert FixedSegments(2).q_loss(q_halt, q_continue, solved, None).item() == 0
    with_loss = FixedSegments(2, halt_loss=True).q_loss(q_halt, q_continue, solved, None)
    assert with_loss.item() == pytest.approx(halt, rel=1e-6)


def test_continue_target_is_the_best_q_of_the_next_segment_and_q_halt_after_the_last():
    segment = torch.tensor([1, 1, 4])
    target = continue_target(segment, 4, torch.tensor([1.0, -2.0, -2.0]), torch.tensor([-1.0, 0.5, 0.5]))
    expected = [1 / (1 + math.exp(-q)) for q in (1.0, 0.5, -2.0)]
    torch.testing.assert_close(target, torch.tensor(expected))


def test_wrong_hyperparameters_are_named():
    with pytest.raises(ValueError, match="num_segments must be at least 1, got 0"):
        FixedSegments(0)
    with pytest.raises(TypeError, match="max_segments must be an int"):
        QHalt(max_segments=2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="exploration is a probability"):
        QLearning(exploration=1.5)


def test_a_residual_stops_samples_that_change_little_and_none_for_longer_than_max_segments():
    rule = ResidualHalt(tolerance=0.1, max_segments=3)
    segment, change = torch.tensor([1, 1, 1, 3]), torch.tensor([0.09, 0.1, 0.0, 0.5], dtype=torch.float64)
    assert rule.halts(segment, change, change, change=change).tolist() == [True, False, True, True]
    assert rule.q_loss(change, change, change > 0, None) == 0
    with pytest.raises(ValueError, match="pass change="):
        rule.halts(segment, change, change)
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="tolerance"):
            ResidualHalt(tolerance=wrong)


def test_the_residual_is_the_relative_change_of_all_streams_over_a_segment():
    torch.manual_seed(0)
    model = TRM(5, 6, hidden_size=8, num_heads=2, num_layers=1, H_cycles=1, L_cycles=1, mixer="mlp")
    tokens = torch.randint(0, 5, (4, 6))
    first = initial_carry(model, Batch(tokens, tokens, tokens[:, 0]))
    carry = Carry(
        {name: torch.randn_like(z) for name, z in first.state.items()}, first.segment, first.segment > 0, first.batch
    )
    after = model(carry.state, tokens, None, BPTT()).state
    joint = [torch.cat([z.flatten(1) for z in it.values()], 1).double() for it in (carry.state, after)]
    change = (joint[1] - joint[0]).norm(dim=1) / joint[1].norm(dim=1)
    rule = ResidualHalt(tolerance=change.median().item() * 1.0001, max_segments=9)
    segment = run_segment(model, carry, carry.batch, BPTT(), rule)
    assert segment.carry.halted.tolist() == (change < rule.tolerance).tolist()
    assert 0 < segment.carry.halted.sum() < 4
