"""What CheckpointedBPTT alone promises: bit equality, stored bytes, replayed conditions, refusals."""

import math
from functools import cache

import pytest
import torch
from cells import CELLS, build
from problems import leaves_of, loop, loss_of
from torch import nn

from loopgrad.gradients import BPTT, CheckpointedBPTT, Stationary, TruncatedBPTT

SCHEDULES = ["sqrt", 1, 2, 5, 64]
BINOMIAL = [CheckpointedBPTT("binomial", num_snapshots=c) for c in (0, 1, 2, 5)]
EVERY = [*map(CheckpointedBPTT, SCHEDULES), *BINOMIAL, CheckpointedBPTT(offload="cpu")]


def gradients(estimator, problem, num_steps):
    torch.manual_seed(3)
    state = estimator(problem.cell, problem.state, problem.inputs, num_steps).state
    return torch.autograd.grad(loss_of(state), list(problem.sources().values()), allow_unused=True)


@cache
def exact(cell, num_steps):
    return gradients(BPTT(), build(cell, torch.float32), num_steps)


# a tensor that stands twice in the state gets its cotangents summed per place, an order that BPTT does not keep
@pytest.mark.one_in(4)
@pytest.mark.parametrize("cell", [name for name in CELLS if name != "twice"])
@pytest.mark.parametrize("estimator", EVERY, ids=str)
@pytest.mark.parametrize("num_steps", [1, 8, 17])
def test_gradient_equals_bptt_bit_for_bit_in_float32(cell, estimator, num_steps):
    ours = gradients(estimator, build(cell, torch.float32), num_steps)
    bptt = exact(cell, num_steps)
    assert all(a is None if b is None else torch.equal(a, b) for a, b in zip(ours, bptt, strict=True))


def saved_bytes(estimator, problem, num_steps):
    """Bytes of the unique storages packed for backward, without those of parameters, inputs and first state."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        state = estimator(problem.cell, problem.state, problem.inputs, num_steps).state
    mine = [*problem.cell.parameters(), *leaves_of(problem.inputs), *leaves_of(problem.state)]
    owned = {tensor.untyped_storage().data_ptr() for tensor in mine}
    kept = sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in owned)
    del state
    return kept


@pytest.mark.parametrize("num_steps", [1, 16, 64, 100, 256])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_saves_one_state_per_segment_and_nothing_else(schedule, num_steps):
    problem = build("affine", torch.float32)
    length = math.ceil(math.sqrt(num_steps)) if schedule == "sqrt" else schedule
    state_bytes = 3 * 4 * 4
    stored = math.ceil(num_steps / length) - 1  # the first state is the caller's
    assert saved_bytes(CheckpointedBPTT(schedule), problem, num_steps) == stored * state_bytes


def test_saved_bytes_grow_as_each_estimator_claims():
    """From T to 4T: twice at O(sqrt T), four times at O(T), not at all at O(k)."""
    problem = build("two_streams", torch.float32)

    def at(estimator, num_steps):
        return saved_bytes(estimator, problem, num_steps)

    assert at(BPTT(), 96) - at(BPTT(), 48) == 2 * (at(BPTT(), 48) - at(BPTT(), 24)) > 0
    assert at(TruncatedBPTT(num_cycles=1), 240) == at(TruncatedBPTT(num_cycles=1), 60) > 0
    segments = [at(CheckpointedBPTT(), num_steps) for num_steps in (36, 144, 576)]
    state = 3 * 4 * 4
    # z_H is stored once where consecutive segments share it, so a segment costs one state to two
    assert all(low * state <= saved <= 2 * low * state for low, saved in zip((5, 11, 23), segments, strict=True))


def test_autocast_is_met_again_in_backward():
    """In bf16 the update rounds differently: without autocast in the second run the gradient would be another one."""
    for estimator in (CheckpointedBPTT(), CheckpointedBPTT(1), BINOMIAL[0], BINOMIAL[2], TruncatedBPTT(num_steps=99)):
        problem, witness = build("affine", torch.float32), build("affine", torch.float32)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            state = estimator(problem.cell, problem.state, problem.inputs, 9).state
            expected_state = loop(witness, 9)
        assert state.dtype == torch.bfloat16
        assert torch.equal(state, expected_state)
        loss_of(state.float()).backward()
        loss_of(expected_state.float()).backward()
        for name, tensor in problem.sources().items():
            assert torch.equal(tensor.grad, witness.sources()[name].grad), name


@pytest.mark.parametrize("estimator", [CheckpointedBPTT(), TruncatedBPTT(num_steps=2)])
def test_autocast_cache_of_a_graph_free_run_does_not_swallow_later_gradients(estimator):
    problem = build("affine", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        estimator(problem.cell, problem.state, problem.inputs, 9)
        later = problem.cell(problem.state, problem.inputs, 0)
    later.float().sum().backward()
    assert problem.cell.A.grad is not None and problem.cell.A.grad.any()


def test_train_mode_is_met_again_in_backward():
    problem, witness = build("dropout"), build("dropout")
    torch.manual_seed(0)
    state = CheckpointedBPTT()(problem.cell, problem.state, problem.inputs, 9).state
    problem.cell.eval()
    loss_of(state).backward()
    assert not problem.cell.training
    torch.manual_seed(0)
    loss_of(loop(witness, 9)).backward()
    assert torch.equal(problem.cell.linear.weight.grad, witness.cell.linear.weight.grad)


def test_an_update_in_place_is_refused():
    linear = nn.Linear(4, 4)
    cell = Stationary(lambda z, x: z.add_(torch.tanh(linear(z))), parameters=linear)
    with pytest.raises(RuntimeError, match="in place"):
        CheckpointedBPTT(schedule=2)(cell, torch.zeros(2, 4), None, 9)


def test_a_parameter_changed_before_backward_is_refused():
    problem = build("affine")
    state = CheckpointedBPTT()(problem.cell, problem.state, problem.inputs, 9).state
    with torch.no_grad():
        problem.cell.A += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        state.sum().backward()


def test_layers_with_a_kernel_of_their_own_give_the_values_of_bptt():
    for layer in (nn.LSTM, nn.GRU, nn.RNN):
        torch.manual_seed(0)
        net = layer(4, 4, batch_first=True)
        cell = Stationary(lambda z, x, net=net: net(z + x)[0], parameters=net)
        z, x = torch.randn(2, 3, 4), torch.randn(2, 3, 4, requires_grad=True)
        states = [estimator(cell, z, x, 9).state for estimator in (BPTT(), CheckpointedBPTT(), TruncatedBPTT(2))]
        assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])
        ours = torch.autograd.grad(states[1].sum(), [x, *net.parameters()])
        bptt = torch.autograd.grad(states[0].sum(), [x, *net.parameters()])
        assert all(map(torch.equal, ours, bptt))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_compiled_cell_gives_the_gradient_of_the_compiled_loop():
    problem = build("two_streams", torch.float32)
    compiled = torch.compile(problem.cell, backend="aot_eager")
    for estimator in (CheckpointedBPTT(), TruncatedBPTT(num_cycles=4)):
        state = estimator(compiled, problem.state, problem.inputs, 9).state
        sources = list(problem.sources().values())
        ours = torch.autograd.grad(loss_of(state), sources)
        bptt = torch.autograd.grad(loss_of(BPTT()(compiled, problem.state, problem.inputs, 9).state), sources)
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(ours, bptt, strict=True))


@pytest.mark.slow
def test_a_deep_segment_is_freed_without_recursion():
    """Nodes that Python has seen are freed recursively by torch 2.13, which would end the process here."""
    gain = torch.ones(3, requires_grad=True)
    cell = Stationary(lambda z, x: torch.tanh(gain * torch.tanh(gain * z + 1) + x), parameters=[gain])
    length = 20_000
    state = CheckpointedBPTT(schedule=length)(cell, torch.zeros(1, 3), torch.ones(1, 3), length).state
    (gradient,) = torch.autograd.grad(state.sum(), gain)
    assert gradient.isfinite().all()
