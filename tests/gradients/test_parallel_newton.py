"""All states at once by Newton's method, against a plain loop and its autograd: states, gradients, steps, refusals."""

import pytest
import torch
from cells import build
from online_cases import by_hand, problem, sources_of, weighed
from problems import leaves_of
from torch import nn

from loopgrad.gradients import BPTT, BatchDims, CheckpointedBPTT, ParallelNewton, Stationary
from loopgrad.gradients.implicit_verdict import Unconverged
from loopgrad.models import Damped

WAYS = {
    "full": ParallelNewton(),
    "damped": ParallelNewton(damping=1.0),
    "diagonal": ParallelNewton("diagonal", max_iterations=200),
    "diagonal damped": ParallelNewton("diagonal", damping=0.1, max_iterations=400),
}


class Tanh(nn.Module):
    """A tanh RNN whose recurrent matrix is orthogonal times a gain."""

    def __init__(self, features=6, gain=0.9, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.A = nn.Parameter(gain * torch.linalg.qr(torch.randn(features, features, dtype=torch.float64))[0])

    def forward(self, z, x, step):
        return torch.tanh(z @ self.A.T + x)


def compared(estimator, given):
    cell, readout, state, xs = given
    rollout = estimator(cell, state, None, len(xs), xs=xs, readout=readout, save="sum")
    last, losses = by_hand(*given)
    sources = sources_of(*given)
    found = torch.autograd.grad(weighed(rollout.state, rollout.outputs), sources)
    expected = torch.autograd.grad(weighed(last, losses), sources)
    for a, b in zip(leaves_of(rollout.state), leaves_of(last), strict=True):
        assert (a - b).abs().max() <= 1e-10
    assert (rollout.outputs - losses).abs().max() <= 1e-9
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-9 * (1 + b.norm())
    return rollout.stats


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["gru", "lstm", "diagonal", "chain", "trm_like"])
def test_states_and_gradients_are_those_of_a_loop(name, way):
    num_steps = 30 if name != "trm_like" else 7
    stats = compared(WAYS[way], problem(name, num_steps))
    assert 1 <= stats.iterations < 200 and not stats.fallback
    assert len(stats.residuals) == stats.iterations + 1 and stats.residuals[-1] <= 2.3e-14
    assert float(stats.residual.max()) == stats.residuals[-1]


@pytest.mark.parametrize("way", WAYS)
def test_a_tanh_network_over_many_updates(way):
    cell, xs = Tanh(), torch.randn(200, 3, 6, dtype=torch.float64).requires_grad_()
    state = torch.randn(3, 6, dtype=torch.float64).requires_grad_()
    rollout = WAYS[way](cell, state, None, 200, xs=xs)
    last = BPTT()(cell, state, None, 200, xs=xs).state
    assert (rollout.state - last).abs().max() <= 1e-10
    found = torch.autograd.grad(rollout.state.sin().sum(), [cell.A, state, xs])
    for a, b in zip(found, torch.autograd.grad(last.sin().sum(), [cell.A, state, xs]), strict=True):
        assert (a - b).norm() <= 1e-9 * (1 + b.norm())


@pytest.mark.parametrize("jacobian", ["full", "diagonal"])
def test_what_is_linear_in_its_state_takes_one_step(jacobian):
    stats = compared(ParallelNewton(jacobian), problem("diagonal", 33))
    assert stats.iterations == 1 and stats.backward_iterations == 0
    if jacobian == "full":
        given = build("affine")
        assert ParallelNewton()(given.cell, given.state, given.inputs, 33).stats.iterations == 1


def test_products_with_a_diagonal_unit_are_one_where_others_take_one_for_each_feature():
    counted = []
    for name in ("diagonal", "gru"):
        cell, _, state, xs = problem(name, 9)
        with torch.no_grad():  # where a gradient may be asked, some products are compared with those of single updates
            stats = ParallelNewton("diagonal")(cell, state, None, 9, xs=xs).stats
        counted.append((stats.vjps, stats.iterations))
    assert counted[0] == (5, 1)  # a product for each feature tells that one is enough
    assert counted[1][0] == 5 * counted[1][1]


def test_calls_do_not_grow_with_the_updates():
    counted = []
    for num_steps in (16, 256):
        cell, calls = Tanh(gain=0.5), []
        cell.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        xs = torch.randn(num_steps, 2, 6, dtype=torch.float64)
        rollout = ParallelNewton()(cell, torch.zeros(2, 6, dtype=torch.float64), None, num_steps, xs=xs)
        rollout.state.sum().backward()
        assert rollout.stats.cell_evaluations == len(calls)
        counted.append((len(calls), rollout.stats.levels))
    assert counted[1][0] <= counted[0][0] + 1
    assert [levels for _, levels in counted] == [7, 15]


@pytest.mark.parametrize("way", ["full", "diagonal"])
def test_lengths_start_and_where_the_batch_is(way):
    cell, state = Tanh(), torch.randn(3, 6, dtype=torch.float64).requires_grad_()
    xs = torch.randn(12, 3, 6, dtype=torch.float64).requires_grad_()
    sources = [cell.A, state, xs]
    found = []
    for estimator in (WAYS[way], BPTT()):
        given = {"xs": xs, "lengths": [12, 0, 5], "start": 3, "readout": lambda z, _, x, t: z.sum(1) * t, "save": "all"}
        rollout = estimator(cell, state, None, 12, **given)
        loss = rollout.outputs.sin().sum() + rollout.state.square().sum()
        found.append([rollout.state, rollout.outputs, *torch.autograd.grad(loss, sources)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)

    turned = Stationary(lambda z, x: cell(z.T, x.T, 0).T, parameters=cell)
    x = torch.randn(6, 3, dtype=torch.float64)
    found = []
    for estimator in (WAYS[way], BPTT()):
        given = {"readout": lambda z, x, *_: (z * x).sum(0), "save": [1, 8], "batch_dim": BatchDims(1, 1)}
        rollout = estimator(turned, state.T, x, 9, **given)
        found.append([rollout.state, rollout.outputs, *torch.autograd.grad(rollout.outputs.sum(), sources[:2])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_float32_is_the_loop_to_its_rounding():
    given = problem("gru", 40, dtype=torch.float32)
    cell, readout, state, xs = given
    rollout = ParallelNewton()(cell, state, None, 40, xs=xs)
    last, _ = by_hand(*given)
    assert (rollout.state - last).abs().max() < 1e-5 and rollout.stats.residuals[-1] <= 1.2e-5


def test_without_gradients_the_states_are_the_same():
    cell, _, state, xs = problem("gru", 20)
    with torch.no_grad():
        rollout = ParallelNewton()(cell, state, None, 20, xs=xs)
    assert not rollout.state.requires_grad and rollout.stats.iterations > 1
    with torch.inference_mode():
        plain = ParallelNewton()(cell, state.detach(), None, 20, xs=xs.detach())
    torch.testing.assert_close(rollout.state, plain.state, rtol=1e-10, atol=1e-10)


def expanding():
    """A map that doubles differences at every update: too many digits for so few steps."""
    cell = Tanh(gain=4.0)
    xs = 0.1 * torch.randn(64, 2, 6, dtype=torch.float64).requires_grad_()
    return cell, torch.randn(2, 6, dtype=torch.float64).requires_grad_(), xs


def test_steps_that_run_out_are_told_with_a_way_out():
    cell, state, xs = expanding()
    with pytest.raises(Unconverged, match=r"3 steps have left a relative residual of .*max_iterations.*fallback"):
        ParallelNewton(max_iterations=3)(cell, state, None, 64, xs=xs)
    rollout = ParallelNewton(max_iterations=3, on_unconverged="fallback")(cell, state, None, 64, xs=xs)
    last = CheckpointedBPTT()(cell, state, None, 64, xs=xs)
    assert rollout.stats.fallback and rollout.stats.iterations == 3 and torch.equal(rollout.state, last.state)
    assert rollout.stats.numbers()["fallback"] == 1
    found, expected = (torch.autograd.grad(it.state.sum(), [cell.A, state, xs]) for it in (rollout, last))
    assert all(map(torch.equal, found, expected))


def test_as_many_steps_as_updates_always_suffice():
    """States up to the first that is off are right, whatever the map does to differences."""
    cell, state, xs = expanding()
    rollout = ParallelNewton(tolerance=1e-12, max_iterations=64)(cell, state, None, 64, xs=xs)
    assert 3 < rollout.stats.iterations <= 64


def test_states_that_are_not_finite_are_told():
    cell = Stationary(lambda z, x: z * z + x)
    with pytest.raises(Unconverged, match="inf"):
        ParallelNewton(max_iterations=40)(cell, torch.full((1, 1), 3.0), torch.ones(1, 1), 30)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("recurrent", RuntimeError, r"reads `step` other than by its period.*as xs"),
        ("twice", RuntimeError, r"say cell\.period"),
        ("dropout", RuntimeError, "draws random numbers"),
        ("buffers", RuntimeError, "rewrites its buffer"),
        ("normalised", RuntimeError, "rewrites its buffer"),
    ],
)
def test_what_has_an_order_is_refused_and_left_as_it_was(name, error, message):
    given = build(name)
    before, random = {n: b.clone() for n, b in given.cell.named_buffers()}, torch.get_rng_state()
    with pytest.raises(error, match=message):
        ParallelNewton()(given.cell, given.state, given.inputs, 6)
    assert all(torch.equal(b, before[n]) for n, b in given.cell.named_buffers())
    assert torch.equal(torch.get_rng_state(), random)


def test_inputs_that_samples_share_and_that_look_like_a_batch_are_told_apart():
    table = torch.randn(3, 3, dtype=torch.float64).requires_grad_()
    cell, z = Stationary(lambda z, x: torch.tanh(z @ x)), torch.randn(3, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"do not run: .*batch_dim=BatchDims\(0\)"):
        ParallelNewton()(cell, z, table, 6)
    found = [it(cell, z, table, 6, batch_dim=BatchDims(0)).state for it in (ParallelNewton(), BPTT())]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(last.sum(), table)[0] for last in found]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_saves_a_state_for_each_update_and_no_jacobian(way):
    kept = []
    for num_steps in (8, 32):
        cell, z = Tanh(gain=0.5), torch.zeros(3, 6, dtype=torch.float64)
        xs = torch.randn(num_steps, 3, 6, dtype=torch.float64)
        node = WAYS[way](cell, z, None, num_steps, xs=xs).state.grad_fn
        while not hasattr(node, "saved_tensors"):
            node = node.next_functions[0][0]
        kept.append(sum(t.numel() for t in node.saved_tensors if t.shape[0] == num_steps))
    assert kept == [8 * 3 * 6, 32 * 3 * 6]


def test_refusals_name_the_argument():
    for wrong, message in (
        ({"jacobian": "whole"}, "jacobian='whole'"),
        ({"damping": -1}, "damping=-1"),
        ({"tolerance": float("nan")}, "tolerance=nan"),
        ({"max_iterations": 0}, "max_iterations=0"),
        ({"on_unconverged": "warn"}, "on_unconverged='warn'"),
        ({"fallback": ParallelNewton()}, "fallback"),
    ):
        with pytest.raises(ValueError, match=message):
            ParallelNewton(**wrong)
    cell, z = Stationary(lambda z, x: z), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="max_numbers=10"):
        ParallelNewton(max_numbers=10)(cell, z, None, 4)
    with pytest.raises(ValueError, match=r"state\[1\].*take it out of the state"):
        ParallelNewton()(cell, (z, torch.zeros(2, dtype=torch.long)), None, 4)
    with pytest.raises(ValueError, match="no first dimension in common"):
        ParallelNewton()(cell, (z, torch.zeros(3)), None, 4)
    with pytest.raises(ValueError, match="leaf of xs has no batch"):
        ParallelNewton()(cell, z, None, 4, xs=torch.zeros(4))
    with pytest.raises(ValueError, match="bfloat16"):
        ParallelNewton()(cell, z.bfloat16(), None, 4)
    with pytest.raises(ValueError, match="autocast"), torch.autocast("cpu"):
        ParallelNewton()(cell, z, None, 4)
    with pytest.raises(TypeError, match=r"Damped.*ReversibleBPTT"):
        ParallelNewton()(Damped(cell), z, None, 4)
