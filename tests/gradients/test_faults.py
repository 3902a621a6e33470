"""Injected faults: never a finite loss with a finite gradient, no flag, and another gradient than is promised.

A fault is NaN, inf, -inf, 1e38 or -1e38 at a random update, sample, leaf and element: of the cell's image, of its
derivative, of a weight, of inputs, of z_0; always, or only where an update is run again. What each estimator promises
is computed by plain loops (`fault_references`), for the samples that its verdict names.
"""

from collections import Counter

import pytest
import torch
from fault_estimators import ROWS
from fault_outcomes import outcome, specs
from faulty_cells import Fault

from loopgrad.gradients import ForwardMode, ReversibleBPTT, Stationary, TruncatedBPTT
from loopgrad.models import Leapfrog

# their cotangents or tangents overflow, or meet 0 times infinity, where those of the loop do not, and say so
MAY_SPOIL = ("implicit", "forward gradient", "float32")
NAN, BIG = float("nan"), 1e38


def injected(name, count, seed):
    found = Counter()
    for spec in specs(name, count, seed):
        what, attempt = outcome(name, spec)
        allowed = {"equal", "flagged", "as the peer has it"}
        if "reversible" in name or "raise" in name or "torchdeq" in name:
            allowed |= {"refused"}  # what left the arithmetic; what the user wants raised; what the peer cannot solve
        if any(part in name for part in MAY_SPOIL):
            allowed |= {"spoilt"}
        assert what in allowed, (what, spec, attempt.flags)
        found[what] += 1
    return found


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ROWS)
def test_a_few_faults_are_never_silent(name):
    injected(name, 2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_many_faults_are_never_silent(name):
    found = injected(name, 80, seed=2)
    assert (
        found["equal"] + found["as the peer has it"] and found["flagged"]
    )  # faults that do not reach the gradient, and others


def sees(name, kind, dtype, fault, leaves=1, loss="tanh"):
    return outcome(name, (kind, leaves, dtype, loss, fault))[0]


@pytest.mark.parametrize("sample", range(3))
def test_1e38_in_a_second_run_is_not_measured_by_itself(sample):
    """The norm of 1e38 is infinite in float32, and everything is small beside it."""
    fault = Fault(BIG, when="later", update=11, sample=sample, element=1)
    assert sees("checkpointed sqrt", "linear", torch.float32, fault) == "flagged"


@pytest.mark.parametrize("name", ["checkpointed binomial 0", "checkpointed binomial 2"])
def test_the_third_run_of_an_update_is_compared_with_the_second(name):
    for update in range(4, 8):
        assert sees(name, "linear", torch.float64, Fault(BIG, when=3, update=update)) in ("flagged", "equal")


@pytest.mark.parametrize("arithmetic", ["float64", "float32"])
@pytest.mark.parametrize("anchors", [None, 4])
def test_digits_that_a_large_image_has_eaten_are_missed(arithmetic, anchors):
    def update(z, x):
        return torch.where(x > 3, BIG, torch.tanh(z))

    z = torch.full((2, 3), 0.5, dtype=torch.float64, requires_grad=True)
    cell, x = Leapfrog(Stationary(update), arithmetic=arithmetic), torch.arange(6.0).view(2, 3)
    state = ReversibleBPTT(anchors=anchors)(cell, z, x, 6).state
    with pytest.raises(RuntimeError, match="rounding exceeds a tenth|did not meet"):
        state.tanh().sum().backward()


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_recursion_that_grows_as_it_may_is_undone(size):
    z = torch.full((2, 3), size, requires_grad=True)
    cell = Leapfrog(Stationary(lambda z, x: z + 1), arithmetic="float32")
    ReversibleBPTT()(cell, z, None, 6).state.sum().backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize(("chunked", "update"), [("forward mode chunked", 11), ("forward gradient state chunked", 10)])
def test_runs_for_further_tangents_must_go_the_same_way(chunked, update):
    assert sees(chunked, "tanh", torch.float64, Fault(BIG, when=2, update=update)) == "flagged"


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("value", [NAN, BIG])
def test_the_second_recursion_of_a_forward_gradient_must_end_where_the_first_did(window, value):
    fault = Fault(value, when="later", update=11 - window, element=None)
    assert sees(f"forward gradient state jvp {window}", "mending", torch.float64, fault) == "flagged"


@pytest.mark.parametrize("value", [NAN, BIG])
def test_a_phantom_gradient_says_how_far_its_cycles_moved(value):
    assert sees("phantom 1", "linear", torch.float64, Fault(value, when=2, update=11), loss="square") == "flagged"


def test_a_sample_without_a_part_in_the_loss_may_be_infinite_forward_in_time():
    w = torch.tensor([0.5], requires_grad=True)
    cell, x = Stationary(lambda z, x: w * z + x, parameters=[w]), torch.tensor([[1.0], [float("inf")]])
    rollout = ForwardMode()(cell, torch.zeros(2, 1), x, 2)
    assert torch.autograd.grad(rollout.state[0].sum(), w)[0].item() == 1


def test_truncation_says_nothing_of_what_came_before_its_window():
    fault = Fault(float("inf"), update=2)
    assert sees("truncated 4", "tanh", torch.float64, fault) == "equal"
    assert ROWS["truncated 4"].estimator == TruncatedBPTT(4)
