"""cost.measure against hand counts: saved and peak bytes."""

import pytest
import torch
from torch import nn

from loopgrad.analysis import measure
from loopgrad.gradients import BPTT, CheckpointedBPTT, Stationary, TruncatedBPTT

BATCH, WIDTH, FLOAT = 5, 7, 4
STATE = BATCH * WIDTH * FLOAT


def tanh_cell():
    linear = nn.Linear(WIDTH, WIDTH)
    return Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear)


def rollout(estimator, cell, num_steps):
    z0, x = torch.ones(BATCH, WIDTH), torch.ones(BATCH, WIDTH)
    return lambda: estimator(cell, z0, x, num_steps).state.sum(), (z0, x)


@pytest.mark.parametrize("num_steps", [1, 4, 16])
def test_bptt_through_a_tanh_cell_saves_one_state_per_update(num_steps):
    cell = tanh_cell()
    run, data = rollout(BPTT(), cell, num_steps)
    # tanh saves its output, which the next linear map saves again in the same storage; z_0 is excluded
    assert measure(run, cell=cell, exclude=data, repeats=0).saved_bytes == num_steps * STATE


@pytest.mark.parametrize("num_steps", [1, 5])
def test_a_normalised_mlp_block_saves_what_its_equations_keep(num_steps):
    tokens, width, hidden = 6, 8, 20
    up, down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def block(z, x):
        h = z + x
        y = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)
        return z + down(nn.functional.gelu(up(y)))

    cell = Stationary(block, parameters=[up, down])
    z0, x = torch.ones(BATCH, tokens, width), torch.ones(BATCH, tokens, width, requires_grad=True)
    cost = measure(lambda: BPTT()(cell, z0, x, num_steps).state.square().sum(), cell=cell, exclude=(z0, x), repeats=0)
    # per update h, y (width), both sides of the gelu (hidden) and the factor (1); and z_T for its square
    assert cost.saved_bytes == FLOAT * BATCH * tokens * (num_steps * (2 * width + 2 * hidden + 1) + width)


def test_without_exclusion_the_start_and_the_weight_are_counted_once():
    linear = nn.Linear(WIDTH, WIDTH)
    z0 = torch.ones(BATCH, WIDTH)

    def run():
        return torch.tanh(linear(torch.tanh(linear(z0)))).sum()

    start_and_weight = STATE + WIDTH * WIDTH * FLOAT
    assert measure(run, repeats=0).saved_bytes == 2 * STATE + start_and_weight
    assert measure(run, exclude=[linear, {"z": z0}], repeats=0).saved_bytes == 2 * STATE
    assert measure(run, exclude=(t for t in (linear, z0)), repeats=0).saved_bytes == 2 * STATE


def test_a_no_grad_prefix_saves_nothing():
    cell = tanh_cell()
    run, data = rollout(TruncatedBPTT(num_steps=2), cell, 32)
    # the two outputs, and the state the first of the two starts from
    assert measure(run, cell=cell, exclude=data, repeats=0).saved_bytes == 3 * STATE


@pytest.mark.parametrize(("num_steps", "length"), [(16, 4), (64, 8), (10, 4), (7, 1)])
def test_checkpoints_save_the_start_of_each_segment(num_steps, length):
    cell = tanh_cell()
    run, data = rollout(CheckpointedBPTT(schedule=length), cell, num_steps)
    segments = -(-num_steps // length)
    assert measure(run, cell=cell, exclude=data, repeats=0).saved_bytes == (segments - 1) * STATE  # z_0 is excluded


def test_views_of_one_storage_count_once_and_whole():
    base = torch.ones(10, 8)
    weight = torch.ones(8, requires_grad=True)
    cost = measure(lambda: (base[2:4] * weight).sum() + (base[5] * weight).sum(), exclude=weight, repeats=0)
    assert cost.saved_bytes == 10 * 8 * FLOAT


def test_a_graph_dropped_before_the_end_of_the_forward_pass_is_not_counted():
    weight = torch.ones(100, requires_grad=True)

    def run():
        weight.exp().exp().sum()  # a graph nobody keeps
        return weight.exp().sum()

    assert measure(run, exclude=weight, repeats=0).saved_bytes == 100 * FLOAT


def test_saved_bytes_equal_the_bytes_of_what_the_nodes_hold():
    # another witness: walk the graph and look at the saved tensors themselves
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.LayerNorm(9), nn.Linear(9, 3), nn.Softmax(dim=-1))
    x = torch.randn(4, 6)
    loss = net(x).square().sum()
    kept, stack = {}, [loss.grad_fn]
    outside = {t.untyped_storage().data_ptr() for t in (x, *net.parameters())}
    while stack:
        node = stack.pop()
        for name in dir(node):
            value = getattr(node, name) if name.startswith("_saved_") else None
            if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() not in outside:
                kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        stack += [child for child, _ in node.next_functions if child is not None]
    assert measure(lambda: net(x).square().sum(), exclude=(net, x), repeats=0).saved_bytes == sum(kept.values())


def test_peak_of_a_chain_is_the_two_results_alive_at_once():
    weight = torch.ones(1000, requires_grad=True)
    n = 1000 * FLOAT

    # forward: exp keeps its result (n), sum (4). Backward: the cotangent ones (4), its expansion is a view, and
    # mul -> gradient (n) while the result is alive.
    assert measure(lambda: weight.exp().sum(), repeats=0).peak_bytes == 2 * n + 2 * FLOAT


def test_peak_does_not_see_what_existed_before_nor_views_of_it():
    weight = torch.ones(10, requires_grad=True)
    big = torch.ones(1000, 10)

    def run():
        big.view(10, 1000).t().mul_(1.0)
        return (weight * 2).sum()

    # forward: weight * 2 (40), sum (4) while both live; backward: ones (4), gradient (40)
    assert measure(run, repeats=0).peak_bytes < 10 * 10 * FLOAT


def test_peak_sees_what_an_attribute_of_ctx_keeps_and_saved_bytes_do_not():
    class Hoarder(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.hidden = [torch.ones(1000) * 2 for _ in range(3)]
            return x * 1.0

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.hidden[0][0]

    weight = torch.ones(2, requires_grad=True)
    cost = measure(lambda: Hoarder.apply(weight).sum(), repeats=0)
    assert cost.saved_bytes == 0
    # the last product is made while its factor is alive
    assert 4 * 1000 * FLOAT <= cost.peak_bytes < 4.1 * 1000 * FLOAT


def test_peak_less_saved_bytes_does_not_grow_with_the_length_under_bptt():
    cell = tanh_cell()
    costs = []
    for num_steps in (4, 16, 64):
        run, data = rollout(BPTT(), cell, num_steps)
        costs.append(measure(run, cell=cell, exclude=data, repeats=0))
    assert len({cost.peak_bytes - cost.saved_bytes for cost in costs}) == 1


def test_a_storage_that_is_resized_counts_at_its_new_size():
    weight = torch.ones(2, requires_grad=True)

    def run():
        buffer = torch.empty(10)
        buffer.resize_(1000)
        return (weight * 1.0).sum()

    assert 1000 * FLOAT <= measure(run, repeats=0).peak_bytes < 1010 * FLOAT


def test_counts_repeat_exactly():
    cell = tanh_cell()
    run, data = rollout(CheckpointedBPTT(), cell, 12)
    first, second = (measure(run, cell=cell, exclude=data, repeats=0) for _ in range(2))
    assert (first.saved_bytes, first.peak_bytes, first.flops) == (second.saved_bytes, second.peak_bytes, second.flops)


def test_sparse_gradients_are_counted():
    embedding = nn.Embedding(50, 8, sparse=True)
    tokens = torch.tensor([1, 2, 3])
    cost = measure(lambda: embedding(tokens).sum(), exclude=(embedding, tokens), repeats=0)
    assert cost.saved_bytes == 0
    assert cost.peak_bytes >= 3 * 8 * FLOAT
