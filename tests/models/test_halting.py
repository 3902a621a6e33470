"""Halting rules by hand-worked tables, and the losses of the q head by their formulas."""

import math

import pytest
import torch

from loopgrad.models import FixedSegments, QHalt, QLearning
from loopgrad.models.halting import continue_target


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
