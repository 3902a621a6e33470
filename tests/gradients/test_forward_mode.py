"""Forward mode against BPTT, number for number."""

import pytest
import torch
from cells import CELLS, build
from problems import loop, loss_of
from torch import nn

from loopgrad.gradients import BPTT, ForwardMode, Stationary

NO_RULES = ("buffers", "normalised")  # updates that write buffers


class Damped(nn.Module):
    """z <- (1 - d) z + d tanh(g W z + x): two numbers that matter and a matrix that does not move."""

    def __init__(self, size=24):
        super().__init__()
        self.register_buffer("matrix", torch.randn(size, size, dtype=torch.float64) / size**0.5)
        self.damping = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.gain = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))
        self.large = nn.Parameter(torch.zeros(40, 40, dtype=torch.float64))

    def forward(self, state, inputs, step):
        new = torch.tanh(self.gain * state @ self.matrix + inputs + self.large.sum())
        return (1 - self.damping) * state + self.damping * new


def problem():
    torch.manual_seed(0)
    cell = Damped()
    return cell, torch.randn(7, 24, dtype=torch.float64), torch.randn(7, 24, dtype=torch.float64)


def test_equals_bptt_at_300_updates():
    cell, state, inputs = problem()
    chosen = [cell.damping, cell.gain]
    weight = torch.randn(7, 24, dtype=torch.float64)
    found = [
        torch.stack(torch.autograd.grad((estimator(cell, state, inputs, 300).state * weight).sum(), chosen))
        for estimator in (ForwardMode(["damping", "gain"]), BPTT())
    ]
    assert found[1].norm() > 0.1
    assert (found[0] - found[1]).norm() < 1e-10 * found[1].norm()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("cell", [name for name in CELLS if name not in NO_RULES])
@pytest.mark.parametrize("chunk_size", [None, 5])
def test_equals_the_hand_written_loop_on_every_cell(cell, chunk_size):
    given, witness = build(cell), build(cell)
    torch.manual_seed(1)
    state = ForwardMode(chunk_size=chunk_size)(given.cell, given.state, given.inputs, 7).state
    got = torch.autograd.grad(loss_of(state), list(given.sources().values()), allow_unused=True)
    torch.manual_seed(1)
    expected = torch.autograd.grad(loss_of(loop(witness, 7)), list(witness.sources().values()), allow_unused=True)
    for name, a, b in zip(given.sources(), got, expected, strict=True):
        if name.startswith(("inputs", "state")):
            assert a is None, f"{name} is declared as not differentiated"
        else:
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-10, atol=1e-11, msg=name)


def test_what_is_not_named_gets_no_tangent():
    cell, state, inputs = problem()
    rollout = ForwardMode(["gain"])(cell, state, inputs, 20)
    assert rollout.stats.tangents == 20
    rollout.state.sum().backward()
    assert cell.gain.grad is not None and cell.damping.grad is None and cell.large.grad is None


def test_saved_bytes_do_not_grow_with_the_updates():
    cell, state, inputs = problem()

    def saved(num_steps):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
            ForwardMode(["damping", "gain"])(cell, state, inputs, num_steps)
        return sum(kept)

    assert saved(4) == saved(300) == 2 * state.nbytes


def test_too_many_parameters_are_refused_with_a_way_out():
    cell, state, inputs = problem()
    with pytest.raises(ValueError, match=r"1602 tangents.*max_parameters=512.*CheckpointedBPTT"):
        ForwardMode()(cell, state, inputs, 3)
    with torch.no_grad():
        ForwardMode()(cell, state, inputs, 3)


def test_names_are_checked():
    cell, state, inputs = problem()
    with pytest.raises(ValueError, match=r"no parameter 'dampin'; nearest: \['damping'"):
        ForwardMode(["dampin"])(cell, state, inputs, 3)
    cell.gain.requires_grad_(False)
    with pytest.raises(ValueError, match="'gain' does not require grad"):
        ForwardMode(["gain"])(cell, state, inputs, 3)
    with pytest.raises(TypeError, match="list of names"):
        ForwardMode("gain")
    with pytest.raises(ValueError, match="max_parameters=0"):
        ForwardMode(max_parameters=0)
    with pytest.raises(ValueError, match="chunk_size=0"):
        ForwardMode(chunk_size=0)


def test_a_plain_tensor_that_a_map_closes_over_is_differentiated():
    w = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    cell = Stationary(lambda z, x: w * z + x, parameters=[w])
    one = torch.ones(1, 1, dtype=torch.float64)
    assert torch.autograd.grad(ForwardMode()(cell, 0 * one, one, 3).state.sum(), w)[0] == 2.0  # 1 + 2 w


def test_a_tensor_that_is_not_passed_is_differentiated_too():
    hidden = torch.ones(4, dtype=torch.float64, requires_grad=True)
    w = torch.ones((), dtype=torch.float64, requires_grad=True)
    cell, z = Stationary(lambda z, x: torch.tanh(w * z * hidden), parameters=[w]), torch.ones(2, 4, dtype=torch.float64)
    found, exact = (
        torch.autograd.grad(estimator(cell, z, None, 5).state.square().sum(), [hidden, w])
        for estimator in (ForwardMode(), BPTT())
    )
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=0)
