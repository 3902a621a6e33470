"""cost.measure against hand counts: calls, vjps and FLOPs."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from loopgrad.analysis import measure
from loopgrad.gradients import BPTT, CheckpointedBPTT, Stationary, TruncatedBPTT


class TwoStreams(nn.Module):
    """Updates z_L twice, then z_H, and hands the other stream on as it is."""

    period = 3

    def __init__(self, width: int = 4):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, state, inputs, step):
        if step % self.period < self.period - 1:
            return {**state, "z_L": torch.tanh(self.linear(state["z_L"] + state["z_H"] + inputs))}
        return {**state, "z_H": torch.tanh(self.linear(state["z_L"] + state["z_H"]))}


class InPlace(nn.Module):
    """Returns the tensor it was given, changed in place."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, state, inputs, step):
        return state.mul_(self.scale)


class HalfHandedOn(nn.Module):
    """From step 2 on computes something new for `a` only; the loss may read `b`."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, state, inputs, step):
        a, b = state
        return (a * self.scale, b * self.scale) if step < 2 else (a * self.scale, b)


def two_streams(num_steps, estimator):
    torch.manual_seed(0)
    cell = TwoStreams()
    state = {"z_L": torch.zeros(2, 4), "z_H": torch.ones(2, 4)}
    x = torch.randn(2, 4, requires_grad=True)

    def run():
        return estimator(cell, state, x, num_steps).state["z_H"].square().sum()

    return cell, x, run


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("estimator", "evaluations", "vjps"),
    [
        (BPTT(), 9, 9),
        (TruncatedBPTT(num_steps=2), 9, 2),
        (TruncatedBPTT(num_cycles=1), 9, 3),
        (TruncatedBPTT(num_steps=100), 9, 9),
        (CheckpointedBPTT(), 18, 9),
        (CheckpointedBPTT(schedule=1), 18, 9),
        (CheckpointedBPTT(schedule=4), 18, 9),
    ],
    ids=str,
)
def test_calls_and_vjps_are_those_counted_by_hand(estimator, evaluations, vjps):
    cell, x, run = two_streams(9, estimator)
    cost = measure(run, cell=cell, exclude=x, repeats=0)
    assert (cost.cell_evaluations, cost.vjps) == (evaluations, vjps)


@pytest.mark.parametrize("estimator", [BPTT(), TruncatedBPTT(num_steps=5), CheckpointedBPTT()], ids=str)
def test_the_stats_of_an_estimator_are_what_is_counted(estimator):
    cell, x, run = two_streams(12, estimator)
    cost = measure(run, cell=cell, repeats=0)
    stats = estimator(cell, {"z_L": torch.zeros(2, 4), "z_H": torch.ones(2, 4)}, x, 12).stats
    assert (stats.cell_evaluations, stats.vjps) == (cost.cell_evaluations, cost.vjps)


def test_an_update_that_the_loss_does_not_depend_on_is_no_vjp():
    cell = TwoStreams()
    state = {"z_L": torch.zeros(2, 4), "z_H": torch.zeros(2, 4)}
    # 5 updates L L H L L: the last two reach z_L only
    cost = measure(lambda: BPTT()(cell, state, torch.ones(2, 4), 5).state["z_H"].sum(), cell=cell, repeats=0)
    assert (cost.cell_evaluations, cost.vjps) == (5, 3)


def test_a_stream_handed_on_by_later_updates_counts_where_it_was_computed():
    cell, state = HalfHandedOn(), (torch.ones(2, 3), torch.ones(2, 3))
    of_b = measure(lambda: BPTT()(cell, state, None, 6).state[1].sum(), cell=cell, repeats=0)
    both = measure(lambda: sum(leaf.sum() for leaf in BPTT()(cell, state, None, 6).state), cell=cell, repeats=0)
    assert (of_b.vjps, both.vjps) == (2, 6)


def test_a_tensor_changed_in_place_counts_as_computed():
    cell = InPlace()
    cost = measure(lambda: cell(cell(torch.ones(2, 3) * 1.0, None, 0).clone(), None, 1).sum(), cell=cell, repeats=0)
    assert (cost.cell_evaluations, cost.vjps) == (2, 2)


@pytest.mark.parametrize(("reentrant", "evaluations"), [(True, 8), (False, 8)])
def test_torch_checkpoint_per_step_evaluates_twice_and_has_one_vjp_per_step(reentrant, evaluations):
    torch.manual_seed(0)
    linear, z0 = nn.Linear(3, 3), torch.ones(2, 3, requires_grad=True)

    def run():
        z = z0
        for _ in range(4):
            z = checkpoint(lambda z: torch.tanh(linear(z)), z, use_reentrant=reentrant)
        return z.sum()

    cost = measure(run, cell=linear, repeats=0)
    assert (cost.cell_evaluations, cost.vjps) == (evaluations, 4)
    assert linear.weight.grad is None  # reentrant checkpoints write .grad from within


def test_two_backward_passes_through_one_call_are_two_vjps():
    linear = nn.Linear(3, 3)
    z = torch.ones(2, 3, requires_grad=True)

    def run():
        f = linear(z)
        (first,) = torch.autograd.grad(f, z, torch.ones_like(f), retain_graph=True)
        return (f * first).sum()

    assert measure(run, cell=linear, repeats=0).vjps == 2


def test_a_gradient_taken_at_the_output_does_not_go_through_the_call():
    linear = nn.Linear(3, 3)

    def run():
        f = linear(torch.ones(2, 3))
        (cotangent,) = torch.autograd.grad(f.square().sum(), f)
        return (linear.weight.sum() * cotangent.detach()).sum()

    cost = measure(run, cell=linear, repeats=0)
    assert (cost.cell_evaluations, cost.vjps) == (1, 0)


def test_a_call_that_autograd_reaches_without_a_gradient_is_no_vjp():
    class FirstIgnored(torch.autograd.Function):
        @staticmethod
        def forward(ctx, ignored, used):
            return used * 1.0

        @staticmethod
        def backward(ctx, grad):
            return None, grad

    linear, weight = nn.Linear(3, 3), torch.ones(2, requires_grad=True)
    cost = measure(lambda: FirstIgnored.apply(linear(torch.ones(2, 3)), weight).sum(), cell=linear, repeats=0)
    assert (cost.cell_evaluations, cost.vjps) == (1, 0)


def test_without_a_cell_calls_are_not_counted():
    weight = torch.ones(3, requires_grad=True)
    cost = measure(lambda: weight.square().sum(), repeats=0)
    assert (cost.cell_evaluations, cost.vjps) == (None, None)


@pytest.mark.parametrize("estimator", [BPTT(), CheckpointedBPTT()], ids=str)
def test_flops_of_a_linear_recursion_are_two_per_multiply_add(estimator):
    batch, width, num_steps = 5, 7, 9
    linear = nn.Linear(width, width, bias=False)
    cell = Stationary(lambda z, x: linear(z) + x, parameters=linear)
    z0 = torch.ones(batch, width, requires_grad=True)
    cost = measure(lambda: estimator(cell, z0, torch.ones(batch, width), num_steps).state.sum(), cell=cell, repeats=0)
    product = 2 * batch * width * width
    passes = 3 if isinstance(estimator, BPTT) else 4  # forward, d/dz, d/dW; and the forward again
    assert cost.flops == passes * product * num_steps


def test_flops_include_attention_on_the_cpu():
    batch, heads, length, width = 2, 3, 8, 4
    q = torch.randn(batch, heads, length, width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    cost = measure(lambda: nn.functional.scaled_dot_product_attention(q, q, q).sum(), repeats=0)
    product = 2 * batch * heads * length * length * width
    assert cost.flops == 2 * product + 5 * product  # the fused backward forms the scores again


def test_flops_of_autograd_grad_on_leaves_are_counted():
    # FlopCounterMode alone raises here: its module hooks cannot live with leaves given to autograd.grad
    linear = nn.Linear(4, 4, bias=False)
    z = torch.ones(2, 4, requires_grad=True)

    def run():
        (first,) = torch.autograd.grad(linear(z).sum(), z)
        return (linear.weight.sum() * first).sum()

    assert measure(run, cell=linear, repeats=0).flops == 2 * (2 * 2 * 4 * 4)
